// How a worker serves its model, resolved: everything but the engine's own configuration. Plain data.
#pragma once

#include <chrono>
#include <string>

#include "core/base/role.h"
#include "core/service/api_options.h"

namespace moectl {

struct ServiceOptions {
  Role role = Role::kDecode;
  ApiOptions api;
  std::string served_model_name;
  // auto (by the checkpoint), none, or a name of core/api/output_formats.h.
  std::string reasoning_parser = "auto", tool_call_parser = "auto";
  bool skip_tokenizer_init = false;        // prompts and answers are token ids
  std::string cluster_secret;              // empty: no router is trusted and no prefill worker asked. Never logged
  std::chrono::seconds stall_timeout{30};  // work without a completed step for so long: health.h
  int kv_port = 0;                         // prefill: where decode workers ask, on api.host; 0: the system picks one
};

}  // namespace moectl
