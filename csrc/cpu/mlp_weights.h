// The weights of a network of linear layers, in the arithmetic type and as the products of small_gemm.h read
// them: rows of whole vectors, padded with zeros.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "cpu/aligned.h"
#include "cpu/row.h"
#include "cpu/small_gemm.h"

namespace flowops {

// `size` elements and what is missing to whole vectors.
template <typename T>
int64_t whole_vectors(int64_t size) {
  constexpr int64_t kLanes = Vec<T>::kLanes;
  return (size + kLanes - 1) / kLanes * kLanes;
}

// From one row of such a matrix to the next: not a multiple of 2 kB, which would put the columns of wide rows
// into a few sets of the caches.
template <typename T>
int64_t row_step(int64_t size) {
  const int64_t row = whole_vectors<T>(size);
  return row * sizeof(T) % 2048 == 0 ? row + Vec<T>::kLanes : row;
}

template <typename T>
struct MlpLayer {
  int64_t inputs, outputs;
  int64_t input_columns, output_columns;  // whole vectors
  int64_t input_row, output_row;          // from one row to the next
  int64_t column;                         // of its outputs in `hidden`
  T* weight;
  T* bias;  // may be null
};

// Rows of a weight that are packed together.
inline constexpr int64_t kPackedRows = 16;

template <typename scalar_t, typename T>
class MlpWeights {
 public:
  // `bias` may be empty. Transposed weights (inputs, outputs) serve the forward pass, others the backward.
  MlpWeights(at::TensorList weight, at::TensorList bias, bool transposed) {
    int64_t column = 0, size = 0;
    for (const auto& w : weight) {
      const int64_t outputs = w.size(0), inputs = w.size(1);
      layers.push_back({inputs, outputs, whole_vectors<T>(inputs), whole_vectors<T>(outputs),
                        row_step<T>(inputs), row_step<T>(outputs), column, nullptr, nullptr});
      size += elements(layers.back(), transposed);
      if (!bias.empty()) size += layers.back().output_columns;
      column += outputs;
    }
    memory_ = aligned_array<T>(size);
    T* free = memory_.get();
    for (auto& layer : layers) {
      layer.weight = free;
      free += elements(layer, transposed);
      if (!bias.empty()) layer.bias = free, free += layer.output_columns;
    }
    for (size_t i = 0; i < layers.size(); ++i) pack(weight[i], layers[i], transposed);
    for (size_t i = 0; i < bias.size(); ++i) {
      const at::Tensor source = bias[i].contiguous();
      load_row(source.const_data_ptr<scalar_t>(), layers[i].bias, layers[i].outputs);
    }
  }

  // Elements of the longest row that a layer reads or writes.
  int64_t longest_row() const {
    int64_t longest = 0;
    for (const auto& layer : layers) longest = std::max({longest, layer.input_row, layer.output_row});
    return longest;
  }

  std::vector<MlpLayer<T>> layers;

 private:
  static int64_t elements(const MlpLayer<T>& layer, bool transposed) {
    return transposed ? layer.input_columns * layer.output_row : layer.outputs * layer.input_row;
  }

  static void pack(const at::Tensor& weight, const MlpLayer<T>& layer, bool transposed) {
    const at::Tensor source = weight.contiguous();
    const auto* data = source.const_data_ptr<scalar_t>();
    constexpr int64_t kLanes = Vec<T>::kLanes;
    const int64_t blocks = (layer.outputs + kPackedRows - 1) / kPackedRows;
    const int64_t grain = 16384 / (1 + kPackedRows * layer.input_row) + 1;
    at::parallel_for(0, blocks, grain, [&](int64_t begin, int64_t end) {
      const auto rows = aligned_array<T>(transposed ? kPackedRows * layer.input_row : 0);
      std::vector<const T*> vectors(layer.input_columns / kLanes);
      for (size_t v = 0; v < vectors.size(); ++v) vectors[v] = rows.get() + v * kLanes;
      for (int64_t block = begin; block < end; ++block) {
        const int64_t first = block * kPackedRows;
        const int64_t count = std::min(kPackedRows, layer.outputs - first);
        T* target = transposed ? rows.get() : layer.weight + first * layer.input_row;
        for (int64_t i = 0; i < count; ++i) {
          load_row(data + (first + i) * layer.inputs, target + i * layer.input_row, layer.inputs);
        }
        if (transposed) {
          transpose(count, static_cast<int64_t>(vectors.size()), vectors.data(), layer.input_row,
                    layer.weight + first, layer.output_row);
        }
      }
    });
  }

  AlignedArray<T> memory_;
};

}  // namespace flowops
