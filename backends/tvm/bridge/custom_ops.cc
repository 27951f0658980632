// ONNX Runtime custom operators `opgraft.kernels::<name>`, one per kernel compiled by TVM and linked in here.
// Neither TVM's runtime nor the C++ library is needed: see backend.cc for the few symbols a kernel asks for.
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "backend.h"
#include "kernel_table.h"
#include "ort_abi.h"

#define OPGRAFT_EXPORT extern "C" __attribute__((visibility("default")))
#define RETURN_IF_ERROR(expression)                  \
  do {                                               \
    if (ort::Status* status_ = (expression)) return status_; \
  } while (0)

namespace opgraft {
namespace {

constexpr const char* kDomain = "opgraft.kernels";
constexpr size_t kMaxKernels = 1024;
// Below this many elements per task, waking a thread costs more than it saves.
constexpr int64_t kTaskElements = 32768;

ort::Table* api = nullptr;
uint64_t call_counts[kMaxKernels];

struct RegionOp : ort::CustomOp {
  const Kernel* kernel;
};
RegionOp operators[kMaxKernels];

const Kernel& kernel_of(const ort::CustomOp* op) { return *static_cast<const RegionOp*>(op)->kernel; }

struct Shape {
  int64_t dims[kMaxRank];
  size_t rank = 0;

  int64_t count() const {
    int64_t product = 1;
    for (size_t i = 0; i < rank; ++i) product *= dims[i];
    return product;
  }
};

ort::Status* fail(const Kernel& kernel, const char* why, size_t operand) {
  char text[256];
  std::snprintf(text, sizeof text, "%s::%s: operand %zu %s", kDomain, kernel.name, operand, why);
  return ort::CreateStatus::call(api, ort::kInvalidArgument, text);
}

ort::Status* read_input(ort::Context* context, size_t index, Shape* shape, void** data, bool* too_deep) {
  const ort::Value* value = nullptr;
  RETURN_IF_ERROR(ort::GetInput::call(api, context, index, &value));
  ort::ShapeInfo* info = nullptr;
  RETURN_IF_ERROR(ort::GetShapeInfo::call(api, value, &info));
  ort::Status* status = ort::GetRank::call(api, info, &shape->rank);
  *too_deep = shape->rank > kMaxRank;
  if (!status && !*too_deep) status = ort::GetDimensions::call(api, info, shape->dims, shape->rank);
  ort::ReleaseShapeInfo::call(api, info);
  if (status || *too_deep) return status;
  return ort::GetTensorData::call(api, const_cast<ort::Value*>(value), data);
}

// Broadcasts `shape` into `into`; false where the two do not fit.
bool broadcast(const Shape& shape, Shape* into) {
  if (shape.rank > into->rank) {
    const size_t shift = shape.rank - into->rank;
    for (size_t i = shape.rank; i-- > 0;) into->dims[i] = i < shift ? 1 : into->dims[i - shift];
    into->rank = shape.rank;
  }
  const size_t shift = into->rank - shape.rank;
  for (size_t i = 0; i < shape.rank; ++i) {
    int64_t& dim = into->dims[i + shift];
    if (dim == 1) dim = shape.dims[i];
    else if (shape.dims[i] != 1 && shape.dims[i] != dim) return false;
  }
  return true;
}

// One call of a kernel, cut into tasks along its rows, or along its columns where nothing depends on them.
struct Call {
  const Kernel* kernel;
  void** buffers;
  int64_t rows;
  int64_t columns;
  int64_t rows_per_task;
  int64_t columns_per_task;
  int failed;
  char message[256];
};

void run_task(void* argument, size_t task) {
  Call& call = *static_cast<Call*>(argument);
  const Kernel& kernel = *call.kernel;
  const int64_t first_row = call.rows_per_task * static_cast<int64_t>(task);
  const int64_t first_column = call.columns_per_task * static_cast<int64_t>(task);
  const bool by_columns = call.columns_per_task > 0;
  const int64_t rows_left = call.rows - first_row, columns_left = call.columns - first_column;
  int64_t rows = by_columns ? call.rows : (rows_left < call.rows_per_task ? rows_left : call.rows_per_task);
  int64_t columns =
      by_columns ? (columns_left < call.columns_per_task ? columns_left : call.columns_per_task) : call.columns;
  int64_t shapes[3][2] = {{rows, columns}, {columns, 0}, {1, 0}};
  int64_t strides[3][2] = {{columns, 1}, {1, 0}, {1, 0}};
  Tensor tensors[kMaxBuffers];
  Cell cells[kMaxBuffers];
  const size_t n_buffers = kernel.n_inputs + kernel.n_outputs;
  for (size_t i = 0; i < n_buffers; ++i) {
    const uint8_t layout = i < kernel.n_inputs ? kernel.layouts[i] : static_cast<uint8_t>(kFull);
    const int64_t offset = layout == kFull ? first_row * call.columns + first_column : 0;
    tensors[i] = {static_cast<float*>(call.buffers[i]) + offset, 1, 0, layout == kFull ? 2 : 1, 2, 32, 1,
                  shapes[layout], strides[layout], 0};
    cells[i] = {kTensorCell, 0, &tensors[i]};
  }
  Cell result = {0, 0, nullptr};
  if (kernel.function(nullptr, cells, static_cast<int32_t>(n_buffers), &result) != 0 &&
      __atomic_exchange_n(&call.failed, 1, __ATOMIC_ACQ_REL) == 0) {
    std::snprintf(call.message, sizeof call.message, "%s::%s: %s", kDomain, kernel.name, last_error());
  }
}

size_t plan_tasks(Call* call, bool has_rows) {
  call->rows_per_task = call->rows;
  call->columns_per_task = 0;
  const int64_t count = call->rows * call->columns;
  if (count <= kTaskElements) return 1;
  if (!has_rows) {  // a single row: see compute
    call->rows_per_task = 0;
    call->columns_per_task = kTaskElements;
    return static_cast<size_t>((count + kTaskElements - 1) / kTaskElements);
  }
  const int64_t per_task = kTaskElements / call->columns;
  call->rows_per_task = per_task > 0 ? per_task : 1;
  return static_cast<size_t>((call->rows + call->rows_per_task - 1) / call->rows_per_task);
}

ort::Status* compute(void* state, ort::Context* context) {
  const Kernel& kernel = *static_cast<const Kernel*>(state);
  Shape shapes[kMaxBuffers];
  void* buffers[kMaxBuffers];
  Shape out;
  bool has_rows = false;
  for (size_t i = 0; i < kernel.n_inputs; ++i) {
    bool too_deep = false;
    RETURN_IF_ERROR(read_input(context, i, &shapes[i], &buffers[i], &too_deep));
    if (too_deep) return fail(kernel, "has too many dims", i);
    if (!broadcast(shapes[i], &out)) return fail(kernel, "does not broadcast with the ones before it", i);
    has_rows |= kernel.layouts[i] == kRow;
  }
  const int64_t count = out.count();
  const int64_t columns = out.rank > 0 ? out.dims[out.rank - 1] : 1;
  // Dims declared under one name may differ at run time; the kernel must then refuse, not misread memory.
  for (size_t i = 0; i < kernel.n_inputs; ++i) {
    const int64_t wanted = kernel.layouts[i] == kFull ? count : kernel.layouts[i] == kRow ? columns : 1;
    if (shapes[i].count() != wanted) return fail(kernel, "has another shape than the model declares", i);
  }
  for (size_t i = 0; i < kernel.n_outputs; ++i) {
    ort::Value* value = nullptr;
    RETURN_IF_ERROR(ort::GetOutput::call(api, context, i, out.dims, out.rank, &value));
    RETURN_IF_ERROR(ort::GetTensorData::call(api, value, &buffers[kernel.n_inputs + i]));
  }
  __atomic_fetch_add(&call_counts[&kernel - kKernels], 1, __ATOMIC_RELAXED);
  if (count == 0) return nullptr;
  Call call = {};
  call.kernel = &kernel;
  call.buffers = buffers;
  call.columns = has_rows ? columns : count;
  call.rows = count / call.columns;
  const size_t n_tasks = plan_tasks(&call, has_rows);
  if (n_tasks == 1) run_task(&call, 0);
  else RETURN_IF_ERROR(ort::ParallelFor::call(api, context, run_task, n_tasks, 0, &call));
  return call.failed ? ort::CreateStatus::call(api, ort::kFail, call.message) : nullptr;
}

void describe(RegionOp* op, const Kernel* kernel) {
  std::memset(static_cast<void*>(op), 0, sizeof *op);
  op->version = ort::kInterfaceVersion;
  op->kernel = kernel;
  op->get_name = [](const ort::CustomOp* self) { return kernel_of(self).name; };
  op->get_execution_provider = [](const ort::CustomOp*) { return "CPUExecutionProvider"; };
  op->get_input_type = [](const ort::CustomOp*, size_t) { return ort::kFloat; };
  op->get_output_type = [](const ort::CustomOp*, size_t) { return ort::kFloat; };
  op->get_input_count = [](const ort::CustomOp* self) { return kernel_of(self).n_inputs; };
  op->get_output_count = [](const ort::CustomOp* self) { return kernel_of(self).n_outputs; };
  op->get_input_characteristic = [](const ort::CustomOp*, size_t) { return ort::kRequired; };
  op->get_output_characteristic = [](const ort::CustomOp*, size_t) { return ort::kRequired; };
  op->get_input_memory_type = [](const ort::CustomOp*, size_t) { return ort::kDefaultMemory; };
  op->get_variadic_input_min_arity = [](const ort::CustomOp*) { return 1; };
  op->get_variadic_input_homogeneity = [](const ort::CustomOp*) { return 1; };
  op->get_variadic_output_min_arity = [](const ort::CustomOp*) { return 1; };
  op->get_variadic_output_homogeneity = [](const ort::CustomOp*) { return 1; };
  op->get_start_version = [](const ort::CustomOp*) { return 1; };
  op->get_end_version = [](const ort::CustomOp*) { return 1; };
  op->create_kernel = [](const ort::CustomOp* self, ort::Table*, const ort::KernelInfo*) -> void* {
    return const_cast<Kernel*>(&kernel_of(self));
  };
  op->create_kernel_v2 = [](const ort::CustomOp* self, ort::Table*, const ort::KernelInfo*,
                            void** kernel) -> ort::Status* {
    *kernel = const_cast<Kernel*>(&kernel_of(self));
    return nullptr;
  };
  op->destroy_kernel = [](void*) {};
  op->compute_v2 = compute;
}

// Round trips through the table: a shape and a status come back as they went in, so the slots are the right
// ones. Returns what is wrong, or nullptr.
const char* self_test(ort::Table* table) {
  ort::Status* status = ort::CreateStatus::call(table, ort::kInvalidArgument, "opgraft");
  if (!status) return "CreateStatus";
  const bool code_kept = ort::GetErrorCode::call(table, status) == ort::kInvalidArgument;
  const bool text_kept = std::strcmp(ort::GetErrorMessage::call(table, status), "opgraft") == 0;
  ort::ReleaseStatus::call(table, status);
  if (!code_kept || !text_kept) return "GetErrorCode or GetErrorMessage";
  ort::ShapeInfo* info = nullptr;
  const int64_t dims[3] = {5, 7, 11};
  if (ort::CreateShapeInfo::call(table, &info) || ort::SetElementType::call(table, info, ort::kFloat) ||
      ort::SetDimensions::call(table, info, dims, 3)) return "the setters of a shape";
  int type = 0;
  size_t rank = 0, count = 0;
  int64_t got[3] = {0, 0, 0};
  const bool failed =
      ort::GetElementType::call(table, info, &type) || ort::GetRank::call(table, info, &rank) || rank != 3 ||
      ort::GetDimensions::call(table, info, got, 3) || ort::GetElementCount::call(table, info, &count);
  ort::ReleaseShapeInfo::call(table, info);
  const bool same = !failed && type == ort::kFloat && std::memcmp(dims, got, sizeof dims) == 0 && count == 385;
  return same ? nullptr : "the getters of a shape";
}

ort::Status* refuse(const ort::ApiBase* base, const char* why) {
  char text[256];
  std::snprintf(text, sizeof text, "opgraft kernels cannot run on ONNX Runtime %s: %s", base->get_version_string(), why);
  // Slot 0 of the first version of the interface, which every runtime serves.
  return ort::CreateStatus::call(base->get_api(1), ort::kFail, text);
}

// One domain for all sessions; it lives as long as the library.
ort::Domain* shared_domain = nullptr;

ort::Status* make_domain() {
  if (__atomic_load_n(&shared_domain, __ATOMIC_ACQUIRE)) return nullptr;
  ort::Domain* domain = nullptr;
  RETURN_IF_ERROR(ort::CreateDomain::call(api, kDomain, &domain));
  for (size_t i = 0; i < kKernelCount; ++i) RETURN_IF_ERROR(ort::AddOperator::call(api, domain, &operators[i]));
  ort::Domain* expected = nullptr;
  if (!__atomic_compare_exchange_n(&shared_domain, &expected, domain, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)) {
    ort::ReleaseDomain::call(api, domain);
  }
  return nullptr;
}

}  // namespace

extern "C" __attribute__((constructor)) void describe_operators() {
  for (size_t i = 0; i < kKernelCount && i < kMaxKernels; ++i) describe(&operators[i], &kKernels[i]);
}

}  // namespace opgraft

OPGRAFT_EXPORT ort::Status* RegisterCustomOps(ort::SessionOptions* options, const ort::ApiBase* base) {
  using namespace opgraft;
  int major = 0, minor = 0;
  if (std::sscanf(base->get_version_string(), "%d.%d", &major, &minor) != 2 || major != 1 ||
      minor < static_cast<int>(ort::kInterfaceVersion)) {
    return refuse(base, "version 1.20 or a later 1.x is needed");
  }
  ort::Table* table = base->get_api(ort::kInterfaceVersion);
  if (!table) return refuse(base, "interface version 20 is not served");
  if (const char* wrong = self_test(table)) return refuse(base, wrong);
  api = table;
  RETURN_IF_ERROR(make_domain());
  return ort::AddDomain::call(api, options, shared_domain);
}

// How often a kernel ran since the library was loaded, -1 for a name it does not hold.
OPGRAFT_EXPORT int64_t opgraft_kernel_calls(const char* name) {
  for (size_t i = 0; i < opgraft::kKernelCount; ++i) {
    if (std::strcmp(opgraft::kKernels[i].name, name) == 0) {
      return static_cast<int64_t>(__atomic_load_n(&opgraft::call_counts[i], __ATOMIC_RELAXED));
    }
  }
  return -1;
}

// Runs one kernel outside a session: `buffers` holds its operands, then its outputs. 0 on success.
OPGRAFT_EXPORT int opgraft_kernel_run(const char* name, int64_t rows, int64_t columns, void** buffers) {
  for (size_t i = 0; i < opgraft::kKernelCount; ++i) {
    if (std::strcmp(opgraft::kKernels[i].name, name) != 0) continue;
    opgraft::Call call = {};
    call.kernel = &opgraft::kKernels[i];
    call.buffers = buffers;
    call.rows = call.rows_per_task = rows;
    call.columns = columns;
    opgraft::run_task(&call, 0);
    return call.failed;
  }
  return -1;
}
