// The message of the last kernel failure on this thread.
#pragma once

namespace opgraft {
const char* last_error();
}
