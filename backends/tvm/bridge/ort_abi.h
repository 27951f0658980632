// The part of ONNX Runtime's C interface this bridge calls, declared by us: the wheel ships no header.
//
// OrtApi is a table of function pointers whose order is frozen: a published slot never moves, new ones are
// appended. A slot below is that function's position, counted on the documented declaration of OrtApi as
// offsetof(OrtApi, <name>) / sizeof(void*). Every slot used here exists since interface version 18; the bridge
// asks for version 20 (runtime 1.20) and checks the table by round trips before it trusts it (self_test).
// OrtCustomOp is the structure of version 20; the runtime reads only as many of its fields as the version
// stored in it has.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ort {

constexpr uint32_t kInterfaceVersion = 20;
constexpr int kFail = 1;             // OrtErrorCode
constexpr int kInvalidArgument = 2;  // OrtErrorCode
constexpr int kFloat = 1;            // element type float32
constexpr int kRequired = 0;         // characteristic of an input or output
constexpr int kDefaultMemory = 0;    // memory type of an input

// Only ever handled through pointers.
struct Status;
struct Value;
struct Context;         // OrtKernelContext
struct KernelInfo;
struct ShapeInfo;       // OrtTensorTypeAndShapeInfo
struct Domain;          // OrtCustomOpDomain
struct SessionOptions;
using Table = void* const;  // OrtApi: an array of function pointers
struct CustomOp;

struct ApiBase {
  Table* (*get_api)(uint32_t version);
  const char* (*get_version_string)();
};

template <size_t Slot, typename Result, typename... Arguments>
struct Function {
  static Result call(Table* api, Arguments... arguments) {
    return reinterpret_cast<Result (*)(Arguments...)>(api[Slot])(arguments...);
  }
};

using CreateStatus = Function<0, Status*, int, const char*>;
using GetErrorCode = Function<1, int, const Status*>;
using GetErrorMessage = Function<2, const char*, const Status*>;
using CreateDomain = Function<26, Status*, const char*, Domain**>;
using AddOperator = Function<27, Status*, Domain*, const CustomOp*>;
using AddDomain = Function<28, Status*, SessionOptions*, Domain*>;
using GetTensorData = Function<51, Status*, Value*, void**>;  // GetTensorMutableData
using CreateShapeInfo = Function<57, Status*, ShapeInfo**>;
using SetElementType = Function<58, Status*, ShapeInfo*, int>;
using SetDimensions = Function<59, Status*, ShapeInfo*, const int64_t*, size_t>;
using GetElementType = Function<60, Status*, const ShapeInfo*, int*>;
using GetRank = Function<61, Status*, const ShapeInfo*, size_t*>;  // GetDimensionsCount
using GetDimensions = Function<62, Status*, const ShapeInfo*, int64_t*, size_t>;
using GetElementCount = Function<64, Status*, const ShapeInfo*, size_t*>;
using GetShapeInfo = Function<65, Status*, const Value*, ShapeInfo**>;  // GetTensorTypeAndShape
using GetInputCount = Function<88, Status*, const Context*, size_t*>;
using GetInput = Function<90, Status*, const Context*, size_t, const Value**>;
using GetOutput = Function<91, Status*, Context*, size_t, const int64_t*, size_t, Value**>;
using ReleaseStatus = Function<93, void, Status*>;
using ReleaseShapeInfo = Function<99, void, ShapeInfo*>;
using ReleaseDomain = Function<101, void, Domain*>;
using ParallelFor = Function<274, Status*, const Context*, void (*)(void*, size_t), size_t, size_t, void*>;

struct CustomOp {
  uint32_t version;
  void* (*create_kernel)(const CustomOp*, Table*, const KernelInfo*);
  const char* (*get_name)(const CustomOp*);
  const char* (*get_execution_provider)(const CustomOp*);
  int (*get_input_type)(const CustomOp*, size_t index);
  size_t (*get_input_count)(const CustomOp*);
  int (*get_output_type)(const CustomOp*, size_t index);
  size_t (*get_output_count)(const CustomOp*);
  void (*compute)(void* kernel, Context*);
  void (*destroy_kernel)(void* kernel);
  int (*get_input_characteristic)(const CustomOp*, size_t index);
  int (*get_output_characteristic)(const CustomOp*, size_t index);
  int (*get_input_memory_type)(const CustomOp*, size_t index);
  int (*get_variadic_input_min_arity)(const CustomOp*);
  int (*get_variadic_input_homogeneity)(const CustomOp*);
  int (*get_variadic_output_min_arity)(const CustomOp*);
  int (*get_variadic_output_homogeneity)(const CustomOp*);
  Status* (*create_kernel_v2)(const CustomOp*, Table*, const KernelInfo*, void** kernel);
  Status* (*compute_v2)(void* kernel, Context*);
  Status* (*infer_output_shape)(const CustomOp*, void* context);
  int (*get_start_version)(const CustomOp*);
  int (*get_end_version)(const CustomOp*);
  size_t (*get_may_inplace)(int** inputs, int** outputs);
  void (*release_may_inplace)(int* inputs, int* outputs);
  size_t (*get_alias_map)(int** inputs, int** outputs);
  void (*release_alias_map)(int* inputs, int* outputs);
};
static_assert(sizeof(CustomOp) == 26 * sizeof(void*), "one field per pointer, version padded to one");

}  // namespace ort
