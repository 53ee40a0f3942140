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

template <typename T>
struct MlpLayer {
  int64_t inputs, outputs;
  int64_t input_row, output_row;  // whole vectors
  int64_t column;                 // of its outputs in `hidden`
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
      const int64_t input_row = whole_vectors<T>(inputs), output_row = whole_vectors<T>(outputs);
      layers.push_back({inputs, outputs, input_row, output_row, column, nullptr, nullptr});
      size += transposed ? input_row * output_row : outputs * input_row;
      if (!bias.empty()) size += output_row;
      column += outputs;
    }
    memory_.resize(size);
    T* free = memory_.data();
    for (auto& layer : layers) {
      layer.weight = free;
      free += transposed ? layer.input_row * layer.output_row : layer.outputs * layer.input_row;
      if (!bias.empty()) layer.bias = free, free += layer.output_row;
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
  static void pack(const at::Tensor& weight, const MlpLayer<T>& layer, bool transposed) {
    const at::Tensor source = weight.contiguous();
    const auto* data = source.const_data_ptr<scalar_t>();
    constexpr int64_t kLanes = Vec<T>::kLanes;
    const int64_t blocks = (layer.outputs + kPackedRows - 1) / kPackedRows;
    const int64_t grain = 16384 / (1 + kPackedRows * layer.input_row) + 1;
    at::parallel_for(0, blocks, grain, [&](int64_t begin, int64_t end) {
      AlignedVector<T> rows(transposed ? kPackedRows * layer.input_row : 0);
      std::vector<const T*> vectors(layer.input_row / kLanes);
      for (size_t v = 0; v < vectors.size(); ++v) vectors[v] = rows.data() + v * kLanes;
      for (int64_t block = begin; block < end; ++block) {
        const int64_t first = block * kPackedRows;
        const int64_t count = std::min(kPackedRows, layer.outputs - first);
        T* target = transposed ? rows.data() : layer.weight + first * layer.input_row;
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

  AlignedVector<T> memory_;
};

}  // namespace flowops
