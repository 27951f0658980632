// What the generated file `kernel_table.cc` tells the bridge about the kernels linked beside it.
#pragma once

#include <cstddef>
#include <cstdint>

namespace opgraft {

// An argument or a result of a compiled kernel: a tagged cell of 16 bytes.
struct Cell {
  int32_t type;
  uint32_t padding;
  void* pointer;
};
constexpr int32_t kTensorCell = 7;  // `pointer` is a Tensor*

// DLPack's DLTensor, the form in which a kernel takes its buffers.
struct Tensor {
  void* data;
  int32_t device_type;
  int32_t device_id;
  int32_t rank;
  uint8_t type_code;
  uint8_t type_bits;
  uint16_t type_lanes;
  int64_t* shape;
  int64_t* strides;
  uint64_t byte_offset;
};

using KernelFunction = int (*)(void* self, const Cell* arguments, int32_t count, Cell* result);

// How an operand spreads over [rows, columns]; the numbers are those of Layout in fused_elementwise.py.
enum Layout : uint8_t { kFull = 0, kRow = 1, kScalar = 2 };

constexpr size_t kMaxBuffers = 48;  // operands and outputs together; the partitioner keeps below it
constexpr size_t kMaxRank = 12;

struct Kernel {
  const char* name;
  KernelFunction function;
  size_t n_inputs;
  size_t n_outputs;
  const uint8_t* layouts;  // [n_inputs]
};

extern const Kernel kKernels[];
extern const size_t kKernelCount;

}  // namespace opgraft
