// The table of flags is complete and consistent, and values reach the options from argv, environment and file in the
// right order, or stop with a message that helps.
#include "cmd/flags/flags.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <set>

namespace moectl {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using Args = std::vector<std::string>;

const std::string kModel = std::string(MOECTL_SOURCE_DIR) + "/models/demo";

// Parses `args` of serve-decode with the demo model.
Options serve(Args args, const Environment& environment = {}) {
  args.insert(args.begin(), {"serve-decode", "--model", kModel});
  return parse_command_line(args, environment).options;
}

struct Failure {
  Code code = Code::kInternal;
  std::string message;
};

Failure failure(const Args& args, const Environment& environment = {}) {
  try {
    parse_command_line(args, environment);
  } catch (const Error& error) {
    return {error.code(), error.what()};
  }
  ADD_FAILURE() << "expected an error";
  return {};
}

Failure serve_failure(Args args, const Environment& environment = {}) {
  args.insert(args.begin(), {"serve-decode", "--model", kModel});
  return failure(args, environment);
}

class TempFile {
 public:
  explicit TempFile(const std::string& text) {
    const auto* test = ::testing::UnitTest::GetInstance()->current_test_info();
    path_ = std::filesystem::temp_directory_path() /
            fmt::format("moectl-{}-{}-{}.yaml", test->name(), ::getpid(), static_cast<void*>(this));
    std::ofstream(path_, std::ios::binary) << text;
  }
  ~TempFile() { std::filesystem::remove(path_); }
  std::string path() const { return path_.string(); }

 private:
  std::filesystem::path path_;
};

// ---------------------------------------------------------------------------------------------- the table
TEST(FlagTable, NamesAreUniqueInEachCommand) {
  for (const Command& command : commands()) {
    std::set<std::string> seen;
    for (const std::string& word : flag_words(command.name)) EXPECT_TRUE(seen.insert(word).second) << word;
  }
}

TEST(FlagTable, EnvironmentNamesAreUnique) {
  std::set<std::string> seen;
  for (const Flag& flag : flags())
    for (const std::string& name : environment_names(flag)) EXPECT_TRUE(seen.insert(name).second) << name;
}

TEST(FlagTable, EveryFlagIsDocumentedAndBelongsToKnownCommands) {
  for (const Flag& flag : flags()) {
    SCOPED_TRACE(std::string(flag.name));
    EXPECT_FALSE(flag.help.empty());
    EXPECT_LE(flag.help.size(), 64u) << "one line in --help";
    EXPECT_FALSE(flag.help.ends_with(".")) << "the table adds full stops where they belong";
    EXPECT_TRUE(flag.doc.empty() || flag.doc.ends_with("."));
    EXPECT_FALSE(flag.group.empty());
    EXPECT_EQ(flag.metavar.empty(), flag.is_switch());
    EXPECT_FALSE(flag.commands.empty());
    for (std::string_view name : flag.commands) EXPECT_NE(find_command(name), nullptr) << name;
    EXPECT_TRUE(std::all_of(flag.name.begin(), flag.name.end(),
                            [](char c) { return c == '-' || std::islower(c) || std::isdigit(c); }));
  }
}

TEST(FlagTable, GroupsStandTogether) {
  const auto names = groups();
  EXPECT_EQ(std::set(names.begin(), names.end()).size(), names.size());
}

// A printed default must be a value that the flag accepts and that changes nothing.
TEST(FlagTable, PrintedDefaultsAreAccepted) {
  for (const Flag& flag : flags()) {
    const std::string text = default_text(flag);
    if (text.empty() || !flag.shown_default.empty()) continue;
    SCOPED_TRACE(std::string(flag.name));
    RawOptions options;
    set_value(options, flag, {{text, "default", Code::kUsage}});
    EXPECT_EQ(default_text(flag), text);
  }
}

TEST(FlagTable, HelpListsEveryFlagWithinHundredColumns) {
  for (const Command& command : commands()) {
    const std::string help = help_text(command);
    for (const Flag& flag : flags()) {
      const bool listed = help.find(flag_syntax(flag, false) + " ") != help.npos ||
                          help.find(flag_syntax(flag, false) + "\n") != help.npos;
      EXPECT_EQ(listed, flag.belongs_to(command.name)) << command.name << " --" << flag.name;
    }
    size_t begin = 0;
    for (size_t end; (end = help.find('\n', begin)) != help.npos; begin = end + 1)
      EXPECT_LE(end - begin, 100u) << help.substr(begin, end - begin);
  }
}

TEST(FlagTable, GeneratedFilesNameEveryVisibleCommandAndFlag) {
  for (const GeneratedFile& file : generated_files()) {
    for (const Command& command : commands()) {
      if (command.hidden) {
        EXPECT_EQ(file.text.find(fmt::format(" {} ", command.name)), file.text.npos) << file.path;
        continue;
      }
      std::string page = fmt::format("man/moectl-{}.1", command.name);
      std::replace(page.begin(), page.end(), ' ', '-');
      if (file.path != page) continue;
      for (const Flag& flag : flags()) {
        std::string name(flag.name);
        for (size_t at = 0; (at = name.find('-', at)) != name.npos; at += 2) name.insert(at, "\\");
        if (flag.belongs_to(command.name)) {
          EXPECT_THAT(file.text, HasSubstr(name));
        }
      }
    }
  }
}

// ---------------------------------------------------------------------------------------------- values
TEST(Flags, ValuesOfEveryKind) {
  const Options options = serve({"--port", "0", "--kv-cache-memory-bytes=2G", "--no-enable-prefix-caching", "--api-key",
                                 "a,b", "--api-key", "c", "--reasoning-parser", "deepseek-r1", "--tool-call-parser",
                                 "openai-gptoss", "--shutdown-timeout", "5"});
  EXPECT_EQ(options.api.port, 0);
  EXPECT_EQ(options.engine.kv_cache_bytes, 2ll << 30);
  EXPECT_FALSE(options.engine.enable_prefix_caching);
  EXPECT_THAT(options.api.api_keys, ElementsAre("a,b", "c"));
  EXPECT_EQ(options.service.reasoning_parser, "deepseek_r1");
  EXPECT_EQ(options.service.tool_call_parser, "harmony");  // the name that other servers give it
  EXPECT_EQ(options.shutdown_timeout, std::chrono::seconds(5));
  EXPECT_EQ(options.service.served_model_name, "demo");
  const Options bench = parse_command_line({"bench", "engine", kModel, "--concurrency", "2,8", "--json"}, {}).options;
  EXPECT_THAT(bench.load.concurrency, ElementsAre(2, 8));
  EXPECT_TRUE(bench.common.json);
}

TEST(Flags, OfBenchComm) {
  const CommBenchOptions defaults = parse_command_line({"bench", "comm"}, {}).options.comm;
  EXPECT_EQ(defaults.ep_size, 2);
  EXPECT_THAT(defaults.tokens, ElementsAre(1, 16, 128, 512, 4096));
  EXPECT_EQ(defaults.pause, std::chrono::milliseconds(2));
  const CommBenchOptions comm =
      parse_command_line(
          {"bench",     "comm",  "--ep-size",         "4",           "--devices",    "3,2,1,0", "--device",      "cuda",
           "--tokens",  "8,128", "--hidden-size",     "2048",        "--top-k",      "6",       "--num-experts", "64",
           "--dtype",   "fp8",   "--all2all-backend", "low-latency", "--iterations", "50",      "--pause-ms",    "0",
           "--threads", "4",     "--collectives",     "nccl"},
          {})
          .options.comm;
  EXPECT_EQ(defaults.collectives, "both");
  EXPECT_EQ(comm.collectives, "nccl");
  EXPECT_EQ(comm.device, "cuda");
  EXPECT_EQ(comm.ep_size, 4);
  EXPECT_THAT(comm.devices, ElementsAre(3, 2, 1, 0));
  EXPECT_THAT(comm.tokens, ElementsAre(8, 128));
  EXPECT_EQ(comm.hidden_size, 2048);
  EXPECT_EQ(comm.top_k, 6);
  EXPECT_EQ(comm.num_experts, 64);
  EXPECT_EQ(comm.dtype, "fp8");
  EXPECT_EQ(comm.backend, All2AllBackend::kLowLatency);
  EXPECT_EQ(comm.iterations, 50);
  EXPECT_EQ(comm.pause, std::chrono::milliseconds(0));
  EXPECT_EQ(comm.num_threads, 4);
  EXPECT_EQ(failure({"bench", "comm", "--ep-size", "1"}).message, "--ep-size: '1' is not a whole number from 2 to 72");
  EXPECT_THAT(failure({"bench", "comm", "--tokens", "0"}).message, HasSubstr("--tokens: '0'"));
  EXPECT_THAT(failure({"bench", "comm", "--collectives", "gloo"}).message, HasSubstr("--collectives"));
}

TEST(Flags, TheLastOfSeveralCounts) {
  EXPECT_EQ(serve({"--port", "1", "--port", "2"}).api.port, 2);
  EXPECT_TRUE(serve({"--no-enable-prefix-caching", "--enable-prefix-caching"}).engine.enable_prefix_caching);
}

TEST(Flags, Sizes) {
  const auto size = [](const std::string& text) {
    return serve({"--kv-cache-memory-bytes", text}).engine.kv_cache_bytes;
  };
  EXPECT_EQ(size("1048576"), 1 << 20);
  EXPECT_EQ(size("512M"), 512ll << 20);
  EXPECT_EQ(size("1.5GiB"), 3ll << 29);
  EXPECT_EQ(size("500MB"), 500'000'000);
  EXPECT_EQ(size("2g"), 2'000'000'000);
  for (const char* bad : {"", "M", "-1M", "1X", "1MiBs", "nan", "inf", "1e400", "99999999999T", "1K", "0x10M", " 1M"}) {
    const Failure f = serve_failure({"--kv-cache-memory-bytes", bad});
    EXPECT_EQ(f.code, Code::kUsage) << bad;
    EXPECT_THAT(f.message, HasSubstr("is not a size from 1M to 64T")) << bad;
  }
}

TEST(Flags, BadValuesNameTheFlagTheValueAndWhatIsExpected) {
  EXPECT_EQ(serve_failure({"--port", "65536"}).message, "--port: '65536' is not a whole number from 0 to 65535");
  EXPECT_EQ(serve_failure({"--port", "12x"}).code, Code::kUsage);
  EXPECT_EQ(serve_failure({"--port", "99999999999999999999"}).code, Code::kUsage);
  EXPECT_THAT(serve_failure({"--device", "cudaa"}).message, HasSubstr("did you mean `cuda`?"));
  EXPECT_EQ(serve_failure({"--port"}).message, "--port needs a value: --port PORT");
  EXPECT_THAT(serve_failure({"--api-key="}).message, HasSubstr("--api-key has no value"));
  EXPECT_THAT(failure({"bench", "engine", "--concurrency", "1,,2"}).message, HasSubstr("--concurrency: ''"));
}

TEST(Flags, SecretsAreInNoMessage) {
  EXPECT_THAT(serve_failure({"--api-key", std::string("secret\0x", 8)}).message, ::testing::Not(HasSubstr("secret")));
}

TEST(Flags, UnknownWordsGetTheNearestOne) {
  EXPECT_THAT(failure({"serve-decod"}).message, HasSubstr("did you mean `serve-decode`?"));
  EXPECT_THAT(failure({"bench"}).message, HasSubstr("`moectl bench engine`"));
  EXPECT_THAT(failure({"bench", "engin"}).message, HasSubstr("did you mean `bench engine`?"));
  EXPECT_THAT(serve_failure({"--prot", "1"}).message, HasSubstr("did you mean `--port`?"));
  EXPECT_THAT(serve_failure({"--ep_size=2"}).message, HasSubstr("did you mean `--ep-size`?"));
  EXPECT_THAT(failure({"serve-decode", kModel, "stray"}).message, HasSubstr("unexpected argument `stray`"));
  const Failure far = failure({"xyzzy"});
  EXPECT_EQ(far.code, Code::kUsage);
  EXPECT_THAT(far.message, ::testing::Not(HasSubstr("did you mean")));
}

TEST(Flags, HelpAndVersionWinOverOtherFaults) {
  EXPECT_THAT(parse_command_line({"serve-decode", "--port", "x", "--nonsense", "--help"}, {}).text,
              HasSubstr("Usage: moectl serve-decode [MODEL]"));
  EXPECT_THAT(parse_command_line({"inspect", "-h"}, {}).text, HasSubstr("Usage: moectl inspect"));
  EXPECT_THAT(parse_command_line({"help", "bench", "engine"}, {}).text, HasSubstr("Usage: moectl bench engine"));
  EXPECT_EQ(parse_command_line({"--version"}, {}).text, version_line() + "\n");
  EXPECT_THAT(parse_command_line({}, {}).text, HasSubstr("Commands"));
}

// ---------------------------------------------------------------------------------------------- sources
TEST(Sources, FlagWinsOverEnvironmentWinsOverFile) {
  const TempFile file("port: 1\nthreads: 2\nhost: 10.0.0.1\n");
  const Options options =
      serve({"--config", file.path(), "--port", "3"}, {{"MOECTL_PORT", "4"}, {"MOECTL_THREADS", "5"}});
  EXPECT_EQ(options.api.port, 3);
  EXPECT_EQ(options.engine.num_threads, 5);
  EXPECT_EQ(options.api.host, "10.0.0.1");
}

TEST(Sources, Environment) {
  EXPECT_EQ(serve({}, {{"EP_SIZE", "4"}}).engine.parallelism.ep_size, 4);
  EXPECT_EQ(serve({}, {{"EP_SIZE", "4"}, {"MOECTL_EP_SIZE", "2"}}).engine.parallelism.ep_size, 2);
  EXPECT_THAT(serve({}, {{"MOECTL_API_KEY", "a,b"}}).api.api_keys, ElementsAre("a", "b"));
  EXPECT_TRUE(serve({}, {{"NO_COLOR", "please"}}).common.no_color);
  EXPECT_FALSE(serve({}, {{"NO_COLOR", ""}}).common.no_color);
  EXPECT_FALSE(serve({}, {{"MOECTL_ENABLE_PREFIX_CACHING", "off"}}).engine.enable_prefix_caching);
  EXPECT_EQ(serve({}, {{"MOECTL_PORT", "tcp://10.0.0.1:80"}}).api.port, 8000) << "Kubernetes sets this";
  EXPECT_THAT(serve_failure({}, {{"MOECTL_PORT", "x"}}).message, HasSubstr("MOECTL_PORT: 'x'"));
  const Invocation typo = parse_command_line({"serve-decode", kModel}, {{"MOECTL_PROT", "1"}, {"MOECTL_JSON", "1"}});
  ASSERT_EQ(typo.warnings.size(), 1u);
  EXPECT_THAT(typo.warnings[0], HasSubstr("did you mean MOECTL_PORT?"));
}

TEST(Sources, FileTakesListsAliasesAndUnderscores) {
  const TempFile file(
      "# a comment\napi_key: [a, b]\ndp-size: 2\nenable-prefix-caching: false\nkv_cache_memory_bytes: 64M\n");
  const Options options = serve({"--config", file.path()});
  EXPECT_THAT(options.api.api_keys, ElementsAre("a", "b"));
  EXPECT_EQ(options.engine.parallelism.ep_size, 2);
  EXPECT_FALSE(options.engine.enable_prefix_caching);
  EXPECT_EQ(options.engine.kv_cache_bytes, 64 << 20);
  EXPECT_EQ(serve({"--config", TempFile("").path()}).api.port, 8000);
}

TEST(Sources, FileErrorsNameFileLineKeyAndNearestFlag) {
  const auto message = [](const std::string& text) {
    const TempFile file(text);
    const Failure f = serve_failure({"--config", file.path()});
    EXPECT_EQ(f.code, Code::kBadData) << f.message;
    EXPECT_EQ(f.message.find(file.path()), 0u) << f.message;
    return f.message.substr(file.path().size());
  };
  EXPECT_EQ(message("port: 1\nprot: 2\n"), ":2: unknown key `prot`, did you mean `port`?");
  EXPECT_EQ(
      message("input-len: 2\n"),
      ":1: `input-len` is a flag of `moectl bench engine` and `moectl bench serve`, not of `moectl serve-decode`");
  EXPECT_EQ(message("port: x\n"), ":1: port: 'x' is not a whole number from 0 to 65535");
  EXPECT_THAT(message("ep-size: 2\nexpert_parallel_size: 2\n"), HasSubstr(":2: expert_parallel_size: given twice"));
  EXPECT_THAT(message("port: [1, 2]\n"), HasSubstr(":1: port: expected one value"));
  EXPECT_THAT(message("api-key: [[1]]\n"), HasSubstr("expected a list of plain values"));
  EXPECT_THAT(message("help: true\n"), HasSubstr("only be given on the command line"));
  EXPECT_THAT(message("config: other.yaml\n"), HasSubstr("only be given on the command line"));
  EXPECT_THAT(message("- port\n"), HasSubstr("expected lines of the form"));
  EXPECT_THAT(message("port: 1\n\tx: [\n"), HasSubstr("not YAML"));
  EXPECT_THAT(message("{a: b}: 1\n"), HasSubstr("the key is not a word"));
  EXPECT_THAT(message("port:\n"), HasSubstr(":1: port: expected one value"));
  EXPECT_THAT(message(std::string(100'000, '[')), HasSubstr("not YAML"));
  EXPECT_THAT(message("a: &a [x]\nb: *c\n"), HasSubstr("not YAML"));
}

TEST(Sources, MissingOversizedOrUnreadableFile) {
  EXPECT_EQ(serve_failure({"--config", "no/such/file.yaml"}).message, "--config no/such/file.yaml: no such file");
  EXPECT_THAT(serve_failure({"--config", kModel}).message, HasSubstr("is a folder"));
  const TempFile large(std::string((1 << 20) + 1, '#'));
  EXPECT_THAT(serve_failure({"--config", large.path()}).message, HasSubstr("larger than 1 MiB"));
}

// ---------------------------------------------------------------------------------------------- together
TEST(Resolve, ParallelSizes) {
  EXPECT_EQ(serve({}).engine.parallelism, Parallelism{});
  EXPECT_EQ(serve({"--dp-size", "4"}).engine.parallelism, expert_parallel(4));
  EXPECT_EQ(serve({"--ep-size", "4"}).engine.parallelism, expert_parallel(4));
  EXPECT_EQ(serve({"--tp-size", "1", "--dp-size", "2", "--ep-size", "2"}).engine.parallelism, expert_parallel(2));
  const Failure f = serve_failure({"--dp-size", "2"}, {{"EP_SIZE", "4"}});
  EXPECT_EQ(f.code, Code::kBadConfig);
  EXPECT_THAT(f.message, HasSubstr("EP_SIZE=4 contradicts --data-parallel-size 2"));
  EXPECT_EQ(serve({"--tp-size", "2"}).engine.parallelism, (Parallelism{.tp_size = 2, .ep_size = 2}));
  EXPECT_EQ(serve({"--tp-size", "2", "--ep-size", "1"}).engine.parallelism, (Parallelism{.tp_size = 2}));
  EXPECT_EQ(serve({"--dp-size", "2", "--ep-size", "1"}).engine.parallelism, (Parallelism{.dp_size = 2}));
  const Failure tp = serve_failure({"--tp-size", "2"}, {{"EP_SIZE", "3"}});
  EXPECT_EQ(tp.code, Code::kBadConfig);
  EXPECT_THAT(tp.message, HasSubstr("EP_SIZE=3 is not a multiple of --tensor-parallel-size 2"));
  EXPECT_EQ(serve_failure({"--tp-size", "0"}).code, Code::kUsage);
  EXPECT_EQ(serve({}).engine.num_redundant_experts, std::nullopt);
  EXPECT_EQ(serve({"--num-redundant-experts", "0"}).engine.num_redundant_experts, 0);
}

TEST(Resolve, Collectives) {
  EXPECT_EQ(serve({}).engine.collectives, Collectives::kAuto);
  EXPECT_EQ(serve({"--collectives", "p2p"}).engine.collectives, Collectives::kP2p);
  EXPECT_EQ(serve({}, {{"MOECTL_COLLECTIVES", "nccl"}}).engine.collectives, Collectives::kNccl);
  const Failure failure = serve_failure({"--collectives", "gloo"});
  EXPECT_EQ(failure.code, Code::kUsage);
  EXPECT_THAT(failure.message, HasSubstr("one of auto, p2p, nccl"));
}

TEST(Resolve, AllToAllBackend) {
  EXPECT_EQ(serve({}).engine.all2all_backend, All2AllBackend::kAuto);
  EXPECT_EQ(serve({"--all2all-backend", "low-latency"}).engine.all2all_backend, All2AllBackend::kLowLatency);
  EXPECT_EQ(serve({}, {{"MOECTL_ALL2ALL_BACKEND", "naive"}}).engine.all2all_backend, All2AllBackend::kNaive);
  // Every choice of the table has a backend.
  for (const std::string_view name : find_flag("serve-decode", "all2all-backend")->choices)
    for (const char* command : {"serve-decode", "serve-prefill"})
      EXPECT_EQ(all2all_backend_name(parse_command_line({command, kModel, "--all2all-backend", std::string(name)}, {})
                                         .options.engine.all2all_backend),
                name);
  const Failure unknown = serve_failure({"--all2all-backend", "low_latancy"});
  EXPECT_EQ(unknown.code, Code::kUsage);
  EXPECT_THAT(unknown.message, HasSubstr("did you mean `low_latency`?"));
}

TEST(Resolve, InspectIsAskedAboutRanksByASizeOrAGpu) {
  const auto query = [](Args args) {
    args.insert(args.begin(), {"inspect", kModel});
    return parse_command_line(args, {}).options.ranks;
  };
  EXPECT_FALSE(query({}));
  EXPECT_FALSE(query({"--max-model-len", "512"}));
  EXPECT_EQ(query({"--ep-size", "8"})->parallelism, expert_parallel(8));
  // What cannot run in this version can be counted.
  EXPECT_EQ(query({"--tp-size", "2"})->parallelism, (Parallelism{.tp_size = 2, .ep_size = 2}));
  EXPECT_EQ(query({"--num-redundant-experts", "4"})->num_redundant_experts, 4);
  const auto gpu = query({"--gpu-memory-gb", "141", "--gpu-memory-utilization", "0.95", "--max-model-len", "512"});
  EXPECT_EQ(gpu->gpu_memory_bytes, 141'000'000'000);
  EXPECT_EQ(gpu->gpu_memory_utilization, 0.95);
  EXPECT_EQ(gpu->max_model_len, 512);
  EXPECT_EQ(gpu->parallelism, Parallelism{});
  EXPECT_EQ(failure({"inspect", kModel, "--ep-size", "4", "--dp-size", "2"}).code, Code::kBadConfig);
  EXPECT_EQ(parse_command_line({"inspect", "--shape", "tiny"}, {}).options.engine.shape, "tiny");
}

TEST(Resolve, WhatThisBuildCannotServe) {
  EXPECT_EQ(serve_failure({"--block-size", "16"}).code, Code::kBadConfig);
  const auto later = [](const Args& args, const Environment& environment, const char* message) {
    const Failure failure = serve_failure(args, environment);
    EXPECT_EQ(failure.code, Code::kBadConfig);
    EXPECT_THAT(failure.message, ::testing::StartsWith(message));
  };
  later({"--enable-eplb"}, {},
        "--enable-eplb: expert load balancing is not in this version; use --num-redundant-experts");
  later({}, {{"MOECTL_ENABLE_EPLB", "1"}}, "MOECTL_ENABLE_EPLB: expert load balancing");
  later({"--eplb-step-interval", "3000"}, {}, "--eplb-step-interval 3000: expert load balancing");
  later({"--enable-dbo"}, {}, "--enable-dbo: two-batch overlap is not in this version; use --max-num-batched-tokens");
  later({"--kv-cache-dtype", "fp8"}, {},
        "--kv-cache-dtype fp8: an fp8 KV cache is not in this version; use auto, f32 or bf16");
  EXPECT_EQ(serve({}, {{"MOECTL_ENABLE_EPLB", "0"}}).engine.kv_cache_dtype, "auto");
  EXPECT_EQ(serve({}).engine.device, "auto");
  EXPECT_EQ(serve_failure({"--ssl-certfile", "c.pem"}).message, "--ssl-certfile c.pem needs --ssl-keyfile too");
  EXPECT_EQ(serve_failure({"--port", "9", "--ops-port", "9"}).code, Code::kBadConfig);
}

TEST(Resolve, TheDebugHeaderIsObeyedOnLoopbackOnly) {
  EXPECT_TRUE(serve({}).api.debug_header);
  EXPECT_TRUE(serve({"--host", "::1"}).api.debug_header);
  EXPECT_FALSE(serve({"--host", "0.0.0.0"}).api.debug_header);
  EXPECT_TRUE(serve({"--host", "0.0.0.0", "--allow-debug-header"}).api.debug_header);
  EXPECT_FALSE(serve({"--no-allow-debug-header"}).api.debug_header);
}

TEST(Resolve, DefaultsThatFollowFromOtherValues) {
  const Options decode = serve({});
  EXPECT_EQ(decode.api.port, 8000);
  EXPECT_EQ(decode.api.ops_port, std::nullopt);
  EXPECT_GE(decode.engine.num_threads, 1);
  EXPECT_EQ(serve({"--threads", "3"}).engine.num_threads, 3);
  EXPECT_EQ(parse_command_line({"serve-prefill", kModel}, {}).options.service.api.port, 8100);
  const Options router = parse_command_line({"serve-router", "--ops-port", "0"}, {}).options;
  EXPECT_EQ(router.router.api.port, 8080);
  EXPECT_EQ(router.router.api.ops_port, 0);
  EXPECT_THAT(parse_command_line({"bench", "kernels", "--shape", "tiny"}, {}).options.kernels.shapes,
              ElementsAre("tiny"));
}

TEST(Resolve, PoliciesOfTheRouter) {
  const auto policies = [](Args args) {
    args.insert(args.begin(), "serve-router");
    const router::DispatcherOptions options = parse_command_line(args, {}).options.router.dispatcher;
    return std::pair(options.prefill_policy, options.decode_policy);
  };
  EXPECT_EQ(policies({}), std::pair(std::string("prefix-cache"), std::string("least-token")));
  EXPECT_EQ(policies({"--policy", "random"}), std::pair(std::string("random"), std::string("random")));
  EXPECT_EQ(policies({"--policy", "random", "--decode-policy", "round-robin"}),
            std::pair(std::string("random"), std::string("round-robin")));
  const Failure unknown = failure({"serve-router", "--prefill-policy", "rnd"});
  EXPECT_EQ(unknown.code, Code::kUsage);
  EXPECT_THAT(unknown.message, HasSubstr("--prefill-policy rnd: there is no policy `rnd`"));
}

TEST(Resolve, ModelFolder) {
  const Failure missing = failure({"inspect", "no/such/model"});
  EXPECT_EQ(missing.code, Code::kNotFound);
  EXPECT_THAT(missing.message, HasSubstr("there is no checkpoint folder `no/such/model`"));
  EXPECT_THAT(failure({"inspect", kModel + "/config.json"}).message, HasSubstr("is a file"));
  EXPECT_THAT(failure({"inspect", kModel, "--model", kModel}).message, HasSubstr("given twice"));
  EXPECT_EQ(parse_command_line({"inspect"}, {{"MOECTL_MODEL", kModel}}).options.engine.model_dir, kModel);
  EXPECT_EQ(parse_command_line({"serve-decode", kModel + "/"}, {}).options.service.served_model_name, "demo");
}

TEST(Closest, PicksNearWordsOnly) {
  EXPECT_EQ(closest("serve-deocde", {"serve-decode", "inspect"}), "serve-decode");
  EXPECT_EQ(closest("max-model", {"max-model-len", "model"}), "max-model-len");
  EXPECT_EQ(closest("x", {"ab", "cd"}), "");
  EXPECT_EQ(closest(std::string(10'000'000, 'x'), {"port"}), "");
}

}  // namespace
}  // namespace moectl
