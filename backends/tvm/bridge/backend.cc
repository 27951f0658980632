// The symbols a kernel compiled by TVM expects from a runtime: three slots for function pointers and one
// function that takes an error's text. Defining them here makes TVM's own runtime unnecessary.
#include "backend.h"

#include <cstdint>
#include <cstdlib>
#include <cstring>

namespace {

thread_local char error_text[192] = "";

void append(const char* part) {
  const size_t used = std::strlen(error_text);
  if (part) std::strncat(error_text, part, sizeof error_text - used - 1);
}

struct ParallelGroup {
  void* sync_handle;
  int32_t n_tasks;
};

// The bridge cuts the work into tasks itself, on the session's threads: a kernel asking for more gets one.
int launch(int (*task)(int id, ParallelGroup* group, void* data), void* data, int) {
  ParallelGroup group = {nullptr, 1};
  return task(0, &group, data);
}

void* allocate(int, int, uint64_t n_bytes, int, int) {
  constexpr uint64_t kAlignment = 64;
  return std::aligned_alloc(kAlignment, (n_bytes + kAlignment - 1) / kAlignment * kAlignment);
}

int release(int, int, void* pointer) {
  std::free(pointer);
  return 0;
}

}  // namespace

const char* opgraft::last_error() { return error_text; }

extern "C" {
void* __TVMBackendParallelLaunch = reinterpret_cast<void*>(launch);
void* __TVMBackendAllocWorkspace = reinterpret_cast<void*>(allocate);
void* __TVMBackendFreeWorkspace = reinterpret_cast<void*>(release);

void TVMFFIErrorSetRaisedFromCStrParts(const char* kind, const char** parts, int32_t n_parts) {
  error_text[0] = '\0';
  append(kind);
  append(": ");
  for (int32_t i = 0; i < n_parts; ++i) append(parts[i]);
}
}
