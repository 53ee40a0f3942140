// What the kernels of linear_attention get, on both backends. Torch-free.
#pragma once

#include <cstdint>

#include "math/linear_attention.h"

namespace flowops {

// (batch, time, heads, columns), strides in elements, columns next to each other; the denominators d have one
// column and the accumulation type.
struct AttentionRows {
  void* data = nullptr;
  int64_t batch = 0, time = 0, head = 0;
};

// What a factor of the scan makes of its rows x: f(x), x, or the gradient G of math/linear_attention.h, from
// rows x = g of the gradient of the output.
enum class AttentionKind { kFeature, kPlain, kGradient };

struct AttentionFactor {
  AttentionKind kind = AttentionKind::kPlain;
  AttentionRows rows;
  int64_t columns = 0;
  bool tail = false;  // one column more: 1 of v', -r <g, out> of G'
  bool keys = false;  // its rows are keys: padded ones count as zero
};

// S' as (sequences, heads, dim, value_dim) and (sequences, heads, dim), dense, in the accumulation type; both
// null for zeros.
struct AttentionState {
  void* kv = nullptr;
  void* z = nullptr;
};

// One scan(query, key, value; initial): rows i of the target are sum_{j <= i} <query_i, key_j> value_j plus
// what the initial state gives. The state has a row for each column of key and a column for each of value.
struct AttentionScan {
  int64_t sequences = 0, heads = 0, query_time = 0, key_time = 0;
  int64_t dim = 0, value_dim = 0;    // of q and k, and of v
  const int64_t* offsets = nullptr;  // (sequences + 1): sequence n is [offsets[n], offsets[n + 1]) of batch 0
  const bool* padding = nullptr;     // (batch, key_time): true where a key is left out
  int64_t padding_time = 0;          // its stride
  AttentionRows out, denominator;    // of the forward pass, for kGradient where normalised
  FeatureMap map = FeatureMap::kElu;
  bool causal = false, reverse = false, normalize = false;
  double eps = 0;
  AttentionFactor query, key, value;
  AttentionState initial, final;  // of `final` either may be null, and is not wanted then
  bool transposed = false;        // the state is S'^T; then there is no final one
  bool complete = false;          // the initial state is the last one: the keys are in it already
  AttentionRows target;           // as many columns as value, less the tail; null if not wanted (non-causal)
  AttentionRows features;         // x of the factor f'(x) of the target, null where it has none
  AttentionRows new_denominator;  // of the forward pass where normalised, else null
};

}  // namespace flowops
