// How one matrix of the model is stored in a checkpoint: plain, or as numbers, scales and zero points in tensors of
// their own. The loader and `inspect` read the same description. Looks at headers only, never at the weights' bytes.
// Pure; any thread.
#pragma once

#include <string>
#include <vector>

#include "core/model/config.h"
#include "core/model/safetensors.h"
#include "core/model/tensor_names.h"

namespace moectl {

struct StoredMatrix {
  std::vector<const TensorInfo*> tensors;  // that hold it, the numbers first; empty: nothing of it is there
  const TensorInfo* shape = nullptr;       // an i64 or i32 tensor that repeats the matrix's shape [outputs, inputs]
  // What the checkpoint lacks, as "NAME [shape]", and what it has otherwise than expected, as "NAME has ...; expected
  // ...".
  std::vector<std::string> missing, wrong;
  // Where nothing is missing or wrong: the whole matrix, the `slice`th of a tensor with three dimensions. Of fused
  // experts the stored orientation may be the other one: then `flipped`, and rows and columns are exchanged here.
  MatrixSpec matrix;
  bool flipped = false;
};

StoredMatrix find_matrix(const QuantConfig& quant, const Checkpoint& checkpoint, const TensorSpec& tensor,
                         int64_t slice = 0);

// What must not be divided between ranks: the elements that share a scale, or a word of AWQ. In rows and columns of the
// tensor as the model has it (TensorSpec). 1: a boundary may lie anywhere, as where one scale serves the whole axis.
struct ScaleBlock {
  int64_t rows = 1, cols = 1;
};
ScaleBlock scale_block(const StoredMatrix& stored);

// Scales, zero points and the like: not parameters of the model. By the endings that all schemes use.
bool is_scale_name(std::string_view name);

}  // namespace moectl
