#include "common/parallel.h"

#include <pthread.h>

namespace pylum {

static bool forked = false;
// Registered when the module loads: the team that would hang a child may be torch's own.
[[maybe_unused]] static const int registered =
    pthread_atfork(nullptr, nullptr, [] { forked = true; });

bool in_forked_child() { return forked; }

}  // namespace pylum
