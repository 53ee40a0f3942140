#include <ATen/Parallel.h>

#include <algorithm>
#include <type_traits>
#include <vector>

#include "common/dispatch.h"
#include "cpu/aligned.h"
#include "cpu/small_gemm.h"
#include "ops/invertible_conv1x1.h"

namespace flowops {
namespace {

// Multiply-adds below which a second thread costs more than it brings.
constexpr int64_t kGrainWork = 32768;
// Pixels gathered into one block, and the row length of its buffer: no power of two, which would put all
// channels of a pixel into a few sets of the cache.
constexpr int64_t kGathered = 256, kGatheredRow = kGathered + 16;
// Vectors whose products are summed in registers before they join the sum of a split.
constexpr int64_t kVectorsPerBlock = 64;
// Fewer of them where nothing is summed up, so that small batches still occupy all threads.
constexpr int64_t kVectorsPerProduct = 16;
// Channels up to which the weight's gradient is a sum of products of vectors. Above, x is transposed, and it
// is a product of matrices, which reads less.
constexpr int64_t kMaxDotChannels = 16;
// Vectors transposed at a time: with 48 channels they stay in the first-level cache.
constexpr int64_t kTransposed = 8;
// Partial sums of the weight's gradient: a fixed number, so that results do not depend on the number of
// threads.
constexpr int64_t kMaxSplits = 16;

// The pixels of a batch, cut into blocks: whole vectors of contiguous pixels, used where they lie, then the
// rest (all of it for 16-bit types and for channels_last), gathered block by block.
class PixelBlocks {
 public:
  PixelBlocks(int64_t batch, int64_t pixels, bool contiguous, int64_t lanes, int64_t vectors_per_block)
      : batch_(batch),
        lanes_(lanes),
        whole_(contiguous ? pixels / lanes : 0),
        rest_(pixels - whole_ * lanes),
        vectors_(batch * whole_),
        per_block_(vectors_per_block) {
    direct_ = (vectors_ + per_block_ - 1) / per_block_;
    gathered_ = (batch * rest_ + kGathered - 1) / kGathered;
  }

  int64_t count() const { return direct_ + gathered_; }
  bool is_direct(int64_t block) const { return block < direct_; }

  // Vectors of a direct block; calls body(index in block, sample, first pixel).
  template <typename Body>
  int64_t for_each_vector(int64_t block, const Body& body) const {
    const int64_t first = block * per_block_, end = std::min(vectors_, first + per_block_);
    int64_t sample = first / whole_, vector = first % whole_;
    for (int64_t v = first; v < end; ++v) {
      body(v - first, sample, vector * lanes_);
      if (++vector == whole_) vector = 0, ++sample;
    }
    return end - first;
  }

  // Runs of pixels of one sample in a gathered block; calls body(column in block, sample, first pixel,
  // length).
  template <typename Body>
  int64_t for_each_run(int64_t block, const Body& body) const {
    const int64_t first = (block - direct_) * kGathered, end = std::min(batch_ * rest_, first + kGathered);
    for (int64_t i = first; i < end;) {
      const int64_t sample = i / rest_, pixel = i % rest_, length = std::min(rest_ - pixel, end - i);
      body(i - first, sample, whole_ * lanes_ + pixel, length);
      i += length;
    }
    return end - first;
  }

 private:
  int64_t batch_, lanes_, whole_, rest_;
  int64_t vectors_, per_block_, direct_, gathered_;
};

template <typename scalar_t>
scalar_t* at_pixel(const Operand& a, int64_t sample, int64_t pixel) {
  return static_cast<scalar_t*>(a.data) + sample * a.batch + pixel * a.inner;
}

// One block of an operand as vectors of the arithmetic type: pointers into the tensor, or into a buffer.
template <typename scalar_t, typename T>
class BlockView {
 public:
  BlockView(const PixelBlocks& blocks, const Operand& operand, int64_t channels)
      : blocks_(blocks), operand_(operand), channels_(channels) {}

  T* const* vectors() const { return pointers_; }
  int64_t row() const { return row_; }
  int64_t count() const { return count_; }

  // Points at block `block`; the buffer's content is not defined.
  void point_at(int64_t block) {
    if constexpr (std::is_same_v<scalar_t, T>) {
      if (blocks_.is_direct(block)) {
        row_ = operand_.outer;
        count_ = blocks_.for_each_vector(block, [&](int64_t v, int64_t sample, int64_t pixel) {
          pointers_[v] = at_pixel<T>(operand_, sample, pixel);
        });
        return;
      }
    }
    if (buffer_.empty()) buffer_.resize(channels_ * kGatheredRow);
    row_ = kGatheredRow;
    const int64_t columns = blocks_.for_each_run(block, [](int64_t, int64_t, int64_t, int64_t) {});
    count_ = (columns + Vec<T>::kLanes - 1) / Vec<T>::kLanes;
    for (int64_t v = 0; v < count_; ++v) pointers_[v] = buffer_.data() + v * Vec<T>::kLanes;
  }

  // Reads block `block`; lanes beyond the last pixel are zero.
  void load(int64_t block) {
    point_at(block);
    if (blocks_.is_direct(block)) return;
    const int64_t columns =
        blocks_.for_each_run(block, [&](int64_t column, int64_t sample, int64_t pixel, int64_t length) {
          copy(sample, pixel, length, [&](int64_t channel, int64_t i, scalar_t& value) {
            buffer_[channel * kGatheredRow + column + i] = static_cast<T>(value);
          });
        });
    for (int64_t channel = 0; channel < channels_; ++channel) {
      T* row = buffer_.data() + channel * kGatheredRow;
      std::fill(row + columns, row + count_ * Vec<T>::kLanes, T(0));
    }
  }

  // Writes a gathered block back.
  void store(int64_t block) {
    if (blocks_.is_direct(block)) return;
    blocks_.for_each_run(block, [&](int64_t column, int64_t sample, int64_t pixel, int64_t length) {
      copy(sample, pixel, length, [&](int64_t channel, int64_t i, scalar_t& value) {
        value = static_cast<scalar_t>(buffer_[channel * kGatheredRow + column + i]);
      });
    });
  }

 private:
  // Calls body(channel, pixel, element) along contiguous memory.
  template <typename Body>
  void copy(int64_t sample, int64_t pixel, int64_t length, const Body& body) {
    scalar_t* start = at_pixel<scalar_t>(operand_, sample, pixel);
    if (operand_.outer == 1) {
      for (int64_t i = 0; i < length; ++i) {
        for (int64_t channel = 0; channel < channels_; ++channel)
          body(channel, i, start[i * operand_.inner + channel]);
      }
      return;
    }
    for (int64_t channel = 0; channel < channels_; ++channel) {
      scalar_t* row = start + channel * operand_.outer;
      if (operand_.inner == 1) {
        for (int64_t i = 0; i < length; ++i) body(channel, i, row[i]);
      } else {
        for (int64_t i = 0; i < length; ++i) body(channel, i, row[i * operand_.inner]);
      }
    }
  }

  const PixelBlocks& blocks_;
  const Operand& operand_;
  int64_t channels_, row_ = 0, count_ = 0;
  T* pointers_[std::max<int64_t>(kVectorsPerBlock, kGatheredRow / Vec<T>::kLanes)];
  AlignedVector<T> buffer_;
};

// target = start + a source for all vectors of a block.
template <typename scalar_t, typename T>
void multiply(int64_t channels, ColumnMajor<T> a, const BlockView<scalar_t, T>& source,
              const BlockView<scalar_t, T>& target, const T* bias) {
  in_blocks<kGemmVectors>(source.count(), [&](int64_t v, auto count) {
    gemm_rows<GemmStart::kBias, false, decltype(count)::value>(
        channels, channels, a, source.vectors() + v, source.row(), target.vectors() + v, target.row(), bias);
  });
}

template <typename scalar_t, typename T>
PixelBlocks cut(int64_t batch, int64_t pixels, int64_t vectors_per_block,
                const std::initializer_list<const Operand*>& operands) {
  bool contiguous = std::is_same_v<scalar_t, T>;
  for (const Operand* a : operands) contiguous = contiguous && (a->data == nullptr || a->inner == 1);
  return PixelBlocks(batch, pixels, contiguous, Vec<T>::kLanes, vectors_per_block);
}

int64_t block_grain(int64_t channels) {
  return std::max<int64_t>(1, kGrainWork / (channels * channels * kGathered));
}

template <typename scalar_t, typename T>
void run_forward(const InvertibleConv1x1Params& p) {
  const auto blocks = cut<scalar_t, T>(p.batch, p.pixels, kVectorsPerProduct, {&p.x, &p.z});
  const T* weight = static_cast<const T*>(p.weight);
  AlignedVector<T> transposed(p.channels * p.channels);
  for (int64_t i = 0; i < p.channels; ++i) {
    for (int64_t j = 0; j < p.channels; ++j) transposed[j * p.channels + i] = weight[i * p.channels + j];
  }
  const std::vector<T> zeros(p.bias ? 0 : p.channels);
  const T* bias = p.bias ? static_cast<const T*>(p.bias) : zeros.data();
  at::parallel_for(0, blocks.count(), block_grain(p.channels), [&](int64_t begin, int64_t end) {
    BlockView<scalar_t, T> x(blocks, p.x, p.channels), z(blocks, p.z, p.channels);
    for (int64_t block = begin; block < end; ++block) {
      x.load(block);
      z.point_at(block);
      multiply<scalar_t, T>(p.channels, {transposed.data(), p.channels}, x, z, bias);
      z.store(block);
    }
  });
}

// Adds the sums over one block of grad_z to `sums`, one value a channel.
template <typename scalar_t, typename T>
void add_channel_sums(int64_t channels, const BlockView<scalar_t, T>& grad_z, T* sums) {
  for (int64_t c = 0; c < channels; ++c) {
    Vec<T> sum(T(0));
    for (int64_t v = 0; v < grad_z.count(); ++v) sum += Vec<T>::load(grad_z.vectors()[v] + c * grad_z.row());
    sums[c] += sum.sum();
  }
}

// Row length of the sums of the weight's gradient.
template <typename T>
int64_t sums_row(int64_t channels) {
  return (channels + Vec<T>::kLanes - 1) / Vec<T>::kLanes * Vec<T>::kLanes;
}

// Adds grad_z x^T, summed over the pixels of one block, to `sums`. `scratch` holds transposed vectors.
template <typename scalar_t, typename T>
void add_outer_products(int64_t channels, const BlockView<scalar_t, T>& grad_z,
                        const BlockView<scalar_t, T>& x, T* sums, T* scratch) {
  const int64_t row = sums_row<T>(channels);
  if (channels <= kMaxDotChannels) {
    dot<T>(channels, channels, x.count(), grad_z.vectors(), grad_z.row(), x.vectors(), x.row(), sums, row);
    return;
  }
  for (int64_t v = 0; v < x.count(); v += kTransposed) {
    const int64_t count = std::min(kTransposed, x.count() - v);
    transpose<T>(channels, count, x.vectors() + v, x.row(), scratch, row);
    const LaneColumns<T> left{grad_z.vectors() + v, 0, grad_z.row()};
    gemm<GemmStart::kTarget>(channels, row, count * Vec<T>::kLanes, left, scratch, row, sums, row);
  }
}

template <typename scalar_t, typename T>
void backward_blocks(const InvertibleConv1x1BackwardParams& p, const PixelBlocks& blocks, int64_t first,
                     int64_t last, const T* zeros, T* grad_weight, T* grad_bias) {
  const int64_t channels = p.channels;
  BlockView<scalar_t, T> grad_z(blocks, p.grad_z, channels), x(blocks, p.x, channels),
      grad_x(blocks, p.grad_x, channels);
  AlignedVector<T> transposed(p.grad_weight ? kTransposed * Vec<T>::kLanes * sums_row<T>(channels) : 0);
  for (int64_t block = first; block < last; ++block) {
    grad_z.load(block);
    if (p.grad_x.data) {
      grad_x.point_at(block);
      multiply<scalar_t, T>(channels, {static_cast<const T*>(p.weight), channels}, grad_z, grad_x, zeros);
      grad_x.store(block);
    }
    if (p.grad_weight) {
      x.load(block);
      add_outer_products<scalar_t, T>(channels, grad_z, x, grad_weight, transposed.data());
    }
    if (p.grad_bias) add_channel_sums(channels, grad_z, grad_bias);
  }
}

template <typename scalar_t, typename T>
void run_backward(const InvertibleConv1x1BackwardParams& p) {
  const auto blocks = cut<scalar_t, T>(p.batch, p.pixels, kVectorsPerBlock, {&p.grad_z, &p.x, &p.grad_x});
  const int64_t row = sums_row<T>(p.channels), square = p.channels * row, size = square + p.channels;
  const int64_t splits = std::min(kMaxSplits, blocks.count());
  const std::vector<T> zeros(p.channels);
  AlignedVector<T> partial(splits * size);
  at::parallel_for(0, splits, 1, [&](int64_t begin, int64_t end) {
    for (int64_t s = begin; s < end; ++s) {
      T* sums = partial.data() + s * size;
      backward_blocks<scalar_t, T>(p, blocks, blocks.count() * s / splits, blocks.count() * (s + 1) / splits,
                                   zeros.data(), sums, sums + square);
    }
  });
  const auto total = [&](int64_t i) {
    double sum = 0;
    for (int64_t s = 0; s < splits; ++s) sum += double(partial[s * size + i]);
    return static_cast<T>(sum);
  };
  for (int64_t i = 0; p.grad_weight && i < p.channels; ++i) {
    T* target = static_cast<T*>(p.grad_weight) + i * p.channels;
    for (int64_t j = 0; j < p.channels; ++j) target[j] = total(i * row + j);
  }
  for (int64_t i = 0; p.grad_bias && i < p.channels; ++i) static_cast<T*>(p.grad_bias)[i] = total(square + i);
}

}  // namespace

at::Tensor invertible_conv1x1_cpu(const at::Tensor& x, const at::Tensor& weight, const OptionalTensor& bias) {
  check_invertible_conv1x1_inputs(x, weight, bias);
  const auto call = prepare_invertible_conv1x1(x, weight, bias);
  if (x.numel() > 0) {
    FLOWOPS_DISPATCH(x.scalar_type(), kInvertibleConv1x1, [&] { run_forward<scalar_t, opmath_t>(call.p); });
  }
  return call.z;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> invertible_conv1x1_backward_cpu(
    const at::Tensor& grad_z, const at::Tensor& x, const at::Tensor& weight, bool wants_x, bool wants_weight,
    bool wants_bias) {
  check_invertible_conv1x1_backward_inputs(grad_z, x, weight);
  const auto call = prepare_invertible_conv1x1_backward(grad_z, x, weight, wants_x, wants_weight, wants_bias);
  FLOWOPS_DISPATCH(x.scalar_type(), kInvertibleConv1x1, [&] { run_backward<scalar_t, opmath_t>(call.p); });
  const auto type = weight.scalar_type();
  return {call.grad_x, call.grad_weight.to(type), call.grad_bias.to(type)};
}

}  // namespace flowops
