#include <ATen/Parallel.h>

#include <algorithm>
#include <array>
#include <type_traits>
#include <vector>

#include "common/dispatch.h"
#include "cpu/mlp_weights.h"
#include "math/mlp.h"
#include "ops/mlp.h"

namespace flowops {
namespace {

// Rows that pass through all layers together, while their activations lie in the caches; a multiple of the
// rows of small_gemm.h.
constexpr int64_t kTileRows = 96;
// Rows of a weight that are multiplied together, so that a few of their columns stay in the second-level
// cache.
constexpr int64_t kDepth = 512;
// Partial sums of the weights' gradients: a fixed number, so that results do not depend on the number of
// threads.
constexpr int64_t kMaxSplits = 16;
// Multiply-adds below which a second thread costs more than it brings.
constexpr int64_t kGrainWork = 32768;

template <typename T>
int64_t tile_grain(const std::vector<MlpLayer<T>>& layers) {
  int64_t work = 1;
  for (const auto& layer : layers) work += kTileRows * layer.inputs * layer.output_row;
  return std::max<int64_t>(1, kGrainWork / work);
}

// The rows of a matrix that a tile takes, or gives.
template <typename scalar_t>
struct MatrixRows {
  scalar_t* data;
  int64_t row;
  scalar_t* at(int64_t i, int64_t column = 0) const { return data + i * row + column; }
};

template <typename scalar_t>
MatrixRows<const scalar_t> rows_of(const at::Tensor& x) {
  return {x.const_data_ptr<scalar_t>(), x.size(1)};
}

template <typename scalar_t>
MatrixRows<scalar_t> new_rows(const at::Tensor& x) {
  return {x.mutable_data_ptr<scalar_t>(), x.size(1)};
}

// Each row of `target` is the bias, and what `skip` has where it is given.
template <typename T>
void start_rows(int64_t rows, const MlpLayer<T>& layer, const T* skip, MatrixRows<T> target) {
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < layer.output_columns; j += Vec<T>::kLanes) {
      auto value = Vec<T>::load(layer.bias + j);
      if (skip != nullptr) value += Vec<T>::load(skip + i * layer.output_row + j);
      value.store(target.at(i, j));
    }
  }
}

// c = or += a b.
template <GemmStart kStart, typename Left, typename T>
void multiply(int64_t rows, int64_t columns, int64_t depth, Left a, const T* b, int64_t b_row,
              MatrixRows<T> c) {
  const int64_t first = std::min(kDepth, depth);
  gemm<kStart>(rows, columns, first, a, b, b_row, c.data, c.row);
  for (int64_t k = first; k < depth; k += kDepth) {
    gemm<GemmStart::kTarget>(rows, columns, std::min(kDepth, depth - k), a.from_column(k), b + k * b_row,
                             b_row, c.data, c.row);
  }
}

template <typename T>
void relu_rows(int64_t size, const T* source, T* target) {
  constexpr int64_t kLanes = Vec<T>::kLanes;
  for (int64_t j = 0; j < size; j += kLanes) relu(Vec<T>::load(source + j)).store(target + j);
}

// One tile through all layers. Three buffers take turns: a layer's outputs are read again by the next but
// one.
template <typename scalar_t, typename T>
class ForwardTile {
 public:
  ForwardTile(const MlpWeights<scalar_t, T>& weights, bool residual)
      : layers_(weights.layers), residual_(residual) {
    const int64_t size = kTileRows * weights.longest_row();
    activations_ = aligned_array<T>(size);
    for (auto& buffer : buffers_) buffer = aligned_array<T>(size);
  }

  void run(int64_t first, int64_t rows, MatrixRows<const scalar_t> x, MatrixRows<scalar_t> hidden,
           MatrixRows<scalar_t> out) {
    const auto& input = layers_.front();
    for (int64_t i = 0; i < rows; ++i) {
      load_row(x.at(first + i), activations_.get() + i * input.input_row, input.inputs);
    }
    for (size_t l = 0; l < layers_.size(); ++l) {
      const auto& layer = layers_[l];
      const bool last = l + 1 == layers_.size();
      const MatrixRows<T> target = last ? result(out, first) : buffer(l % 3, layer);
      const T* const skip = has_skip(l, residual_) ? buffers_[(l - 2) % 3].get() : nullptr;
      start_rows(rows, layer, skip, target);
      multiply<GemmStart::kTarget>(rows, layer.output_columns, layer.inputs,
                                   RowMajor<T>{activations_.get(), layer.input_row}, layer.weight,
                                   layer.output_row, target);
      if (last) {
        store(rows, target, layer, out.at(first), out.row);
      } else {
        if (hidden.row > 0) store(rows, target, layer, hidden.at(first, layer.column), hidden.row);
        relu_rows(rows * layer.output_row, target.data, activations_.get());
      }
    }
  }

 private:
  MatrixRows<T> buffer(size_t i, const MlpLayer<T>& layer) { return {buffers_[i].get(), layer.output_row}; }

  // Where the last layer writes: its place, if that has whole vectors of the arithmetic type.
  MatrixRows<T> result(MatrixRows<scalar_t> out, int64_t first) {
    if constexpr (std::is_same_v<scalar_t, T>) {
      if (layers_.back().output_columns == out.row) return {out.at(first), out.row};
    }
    return buffer(0, layers_.back());
  }

  static void store(int64_t rows, MatrixRows<T> source, const MlpLayer<T>& layer, scalar_t* target,
                    int64_t row) {
    if (static_cast<const void*>(source.data) == target) return;
    for (int64_t i = 0; i < rows; ++i) store_row(source.at(i), target + i * row, layer.outputs);
  }

  const std::vector<MlpLayer<T>>& layers_;
  bool residual_;
  AlignedArray<T> activations_;
  std::array<AlignedArray<T>, 3> buffers_;
};

// The sums over the rows of a split: the gradients of the weights, as MlpWeights lays them out, each followed
// by that of its bias.
template <typename T>
class MlpSums {
 public:
  explicit MlpSums(const std::vector<MlpLayer<T>>& layers) {
    for (const auto& layer : layers) {
      starts_.push_back(size_);
      size_ += layer.outputs * layer.input_row + layer.output_columns;
    }
  }
  int64_t size() const { return size_; }
  int64_t weight(size_t layer) const { return starts_[layer]; }
  int64_t bias(size_t l, const MlpLayer<T>& layer) const {
    return starts_[l] + layer.outputs * layer.input_row;
  }

 private:
  std::vector<int64_t> starts_;
  int64_t size_ = 0;
};

template <typename T>
void add_column_sums(int64_t rows, const MlpLayer<T>& layer, const T* gradient, T* sums) {
  for (int64_t j = 0; j < layer.output_columns; j += Vec<T>::kLanes) {
    auto sum = Vec<T>::load(sums + j);
    for (int64_t i = 0; i < rows; ++i) sum += Vec<T>::load(gradient + i * layer.output_row + j);
    sum.store(sums + j);
  }
}

// The gradient before the activation, plus what the layer after the next sends past it.
template <typename T>
void relu_gradient_rows(int64_t size, const T* outputs, const T* skip, T* gradient) {
  constexpr int64_t kLanes = Vec<T>::kLanes;
  for (int64_t j = 0; j < size; j += kLanes) {
    auto value = relu_gradient(Vec<T>::load(gradient + j), Vec<T>::load(outputs + j));
    if (skip != nullptr) value += Vec<T>::load(skip + j);
    value.store(gradient + j);
  }
}

// One tile back through all layers. Three buffers of gradients take turns.
template <typename scalar_t, typename T>
class BackwardTile {
 public:
  BackwardTile(const MlpWeights<scalar_t, T>& weights, const MlpSums<T>& sums, bool residual)
      : layers_(weights.layers), sums_(sums), residual_(residual) {
    const int64_t size = kTileRows * weights.longest_row();
    outputs_ = aligned_array<T>(size), activations_ = aligned_array<T>(size);
    for (auto& buffer : buffers_) buffer = aligned_array<T>(size);
  }

  void run(int64_t first, int64_t rows, MatrixRows<const scalar_t> grad_out, MatrixRows<const scalar_t> x,
           MatrixRows<const scalar_t> hidden, T* sums, MatrixRows<scalar_t> grad_x) {
    const size_t last = layers_.size() - 1;
    load(rows, grad_out.at(first), grad_out.row, layers_[last].outputs, buffers_[last % 3].get());
    for (size_t l = last + 1; l-- > 0;) {
      const auto& layer = layers_[l];
      const T* const gradient = buffers_[l % 3].get();
      T* const before = buffers_[(l + 2) % 3].get();  // of the layer before, or of x
      if (l == 0) {
        load(rows, x.at(first), x.row, layer.inputs, activations_.get());
      } else {
        load(rows, hidden.at(first, layers_[l - 1].column), hidden.row, layer.inputs, outputs_.get());
        relu_rows(rows * layer.input_row, outputs_.get(), activations_.get());
      }
      add_column_sums(rows, layer, gradient, sums + sums_.bias(l, layer));
      multiply<GemmStart::kTarget>(layer.outputs, layer.input_columns, rows,
                                   ColumnMajor<T>{gradient, layer.output_row}, activations_.get(),
                                   layer.input_row, {sums + sums_.weight(l), layer.input_row});
      multiply<GemmStart::kZero>(rows, layer.input_columns, layer.outputs,
                                 RowMajor<T>{gradient, layer.output_row}, layer.weight, layer.input_row,
                                 {before, layer.input_row});
      if (l > 0) {
        const bool skip = l < last && has_skip(l + 1, residual_);
        relu_gradient_rows(rows * layer.input_row, outputs_.get(),
                           skip ? buffers_[(l + 1) % 3].get() : nullptr, before);
      }
    }
    const auto& input = layers_.front();
    for (int64_t i = 0; i < rows; ++i) {
      store_row(buffers_[2].get() + i * input.input_row, grad_x.at(first + i), input.inputs);
    }
  }

 private:
  // Whole vectors are read later, but what lies beyond `size` never joins what is kept.
  static void load(int64_t rows, const scalar_t* source, int64_t source_row, int64_t size, T* target) {
    for (int64_t i = 0; i < rows; ++i) {
      load_row(source + i * source_row, target + i * row_step<T>(size), size);
    }
  }

  const std::vector<MlpLayer<T>>& layers_;
  const MlpSums<T>& sums_;
  bool residual_;
  AlignedArray<T> outputs_, activations_;
  std::array<AlignedArray<T>, 3> buffers_;
};

// Adds the splits up, one after another, and hands out the gradients of the weights and biases.
template <typename scalar_t, typename T>
void share_out(const std::vector<MlpLayer<T>>& layers, const MlpSums<T>& sums, const T* partial,
               int64_t splits, const TensorVector& grad_weight, const TensorVector& grad_bias) {
  const auto total = [&](int64_t start, int64_t size, scalar_t* target, T* row) {
    std::copy_n(partial + start, whole_vectors<T>(size), row);
    for (int64_t s = 1; s < splits; ++s) {
      const T* source = partial + s * sums.size() + start;
      for (int64_t j = 0; j < whole_vectors<T>(size); j += Vec<T>::kLanes) {
        (Vec<T>::load(row + j) + Vec<T>::load(source + j)).store(row + j);
      }
    }
    store_row(row, target, size);
  };
  for (size_t l = 0; l < layers.size(); ++l) {
    const auto& layer = layers[l];
    auto* const weight = grad_weight[l].mutable_data_ptr<scalar_t>();
    at::parallel_for(
        0, layer.outputs, kGrainWork / (1 + layer.input_row) + 1, [&](int64_t begin, int64_t end) {
          const auto row = aligned_array<T>(layer.input_columns);
          for (int64_t i = begin; i < end; ++i) {
            total(sums.weight(l) + i * layer.input_row, layer.inputs, weight + i * layer.inputs, row.get());
          }
        });
    const auto row = aligned_array<T>(layer.output_columns);
    total(sums.bias(l, layer), layer.outputs, grad_bias[l].mutable_data_ptr<scalar_t>(), row.get());
  }
}

template <typename scalar_t>
void forward(const at::Tensor& x, at::TensorList weight, at::TensorList bias, bool residual,
             const at::Tensor& hidden, const at::Tensor& out) {
  using T = at::opmath_type<scalar_t>;
  const MlpWeights<scalar_t, T> weights(weight, bias, /*transposed=*/true);
  const int64_t batch = x.size(0), tiles = (batch + kTileRows - 1) / kTileRows;
  at::parallel_for(0, tiles, tile_grain(weights.layers), [&](int64_t begin, int64_t end) {
    ForwardTile<scalar_t, T> tile(weights, residual);
    for (int64_t t = begin; t < end; ++t) {
      tile.run(t * kTileRows, std::min(kTileRows, batch - t * kTileRows), rows_of<scalar_t>(x),
               new_rows<scalar_t>(hidden), new_rows<scalar_t>(out));
    }
  });
}

template <typename scalar_t>
void backward(const at::Tensor& grad_out, const at::Tensor& x, const at::Tensor& hidden,
              at::TensorList weight, bool residual, const at::Tensor& grad_x, const TensorVector& grad_weight,
              const TensorVector& grad_bias) {
  using T = at::opmath_type<scalar_t>;
  const MlpWeights<scalar_t, T> weights(weight, {}, /*transposed=*/false);
  const MlpSums<T> sums(weights.layers);
  const int64_t batch = x.size(0), tiles = (batch + kTileRows - 1) / kTileRows;
  const int64_t splits = std::clamp<int64_t>(tiles, 1, kMaxSplits);
  const auto partial = aligned_array<T>(splits * sums.size());
  at::parallel_for(0, splits, tile_grain(weights.layers), [&](int64_t begin, int64_t end) {
    BackwardTile<scalar_t, T> tile(weights, sums, residual);
    for (int64_t s = begin; s < end; ++s) {
      T* const split = partial.get() + s * sums.size();
      std::fill_n(split, sums.size(), T(0));
      for (int64_t t = tiles * s / splits; t < tiles * (s + 1) / splits; ++t) {
        tile.run(t * kTileRows, std::min(kTileRows, batch - t * kTileRows), rows_of<scalar_t>(grad_out),
                 rows_of<scalar_t>(x), rows_of<scalar_t>(hidden), split, new_rows<scalar_t>(grad_x));
      }
    }
  });
  share_out<scalar_t>(weights.layers, sums, partial.get(), splits, grad_weight, grad_bias);
}

}  // namespace

std::tuple<at::Tensor, at::Tensor> mlp_cpu(const at::Tensor& x, at::TensorList weight, at::TensorList bias,
                                           bool residual, bool keep_hidden) {
  check_mlp_inputs(x, weight, bias, residual);
  const auto hidden = x.new_empty({x.size(0), keep_hidden ? hidden_width(weight) : 0});
  const auto out = x.new_empty({x.size(0), weight.back().size(0)});
  FLOWOPS_DISPATCH(x.scalar_type(), kMlp,
                   [&] { forward<scalar_t>(x.contiguous(), weight, bias, residual, hidden, out); });
  return {out, hidden};
}

std::tuple<at::Tensor, TensorVector, TensorVector> mlp_backward_cpu(const at::Tensor& grad_out,
                                                                    const at::Tensor& x,
                                                                    const at::Tensor& hidden,
                                                                    at::TensorList weight, bool residual) {
  check_mlp_backward_inputs(grad_out, x, hidden, weight, residual);
  auto grads = new_mlp_gradients(x, weight);
  FLOWOPS_DISPATCH(x.scalar_type(), kMlp, [&] {
    backward<scalar_t>(grad_out.contiguous(), x.contiguous(), hidden.contiguous(), weight, residual, grads.x,
                       grads.weight, grads.bias);
  });
  return {grads.x, grads.weight, grads.bias};
}

}  // namespace flowops
