// Request fields that clients know and this server does not support (yet). They are refused, never ignored: an answer
// that silently lacks what was asked for is worse than none. Pure, any thread.
#pragma once

#include "core/api/fields.h"

namespace moectl::api {

// Throws Error{kInvalidArgument} naming the field, unless its value asks for nothing (priority: 0, functions: []).
// `chat`: tools are supported.
void refuse_unsupported(const Fields& fields, bool chat);

}  // namespace moectl::api
