#include <ATen/Parallel.h>

#include <algorithm>
#include <utility>

#include "common/dispatch.h"
#include "cpu/linear_attention_scan.h"
#include "ops/linear_attention.h"

namespace flowops {
namespace {

// Multiplications below which a second thread costs more than it brings.
constexpr int64_t kGrain = 1 << 15;
// Bytes of the states that one thread turns between: a share of the second cache.
constexpr int64_t kStateBytes = 1 << 18;

// How many heads take turns: as many as caches hold and as leave the threads equal shares.
int64_t heads_together(const AttentionScan& scan, int64_t state_bytes, int64_t threads) {
  for (int64_t heads = std::min(scan.heads, kStateBytes / state_bytes); heads > 1; --heads) {
    if (scan.heads % heads != 0) continue;
    const int64_t tasks = scan.sequences * (scan.heads / heads);
    if (tasks % threads == 0 || tasks >= 4 * threads) return heads;
  }
  return 1;
}

// Heads of sequences are dealt to the threads; where there are fewer, the columns of the value factor are
// too. A column does not depend on the others; rows of the twin's target do, so it is then scanned for.
void run_scan(at::ScalarType type, const AttentionScan& scan, const AttentionScan* twin = nullptr) {
  const int64_t heads = scan.sequences * scan.heads, columns = scan.value.columns;
  if (heads == 0) return;
  const int64_t rows = scan.key.columns + scan.key.tail;
  const int64_t work = std::max<int64_t>(1, scan.query_time + scan.key_time) * rows * columns;
  const int64_t lanes = Vec<double>::kLanes * 2, threads = at::get_num_threads();
  int64_t slices = 1;
  if (heads < threads && work > kGrain) slices = std::min((columns + lanes - 1) / lanes, threads / heads);
  const int64_t width = ((columns + slices - 1) / slices + lanes - 1) / lanes * lanes;
  slices = (columns + width - 1) / width;
  if (twin != nullptr && slices > 1) run_scan(type, *std::exchange(twin, nullptr));
  FLOWOPS_DISPATCH(type, kLinearAttention, [&] {
    const int64_t together =
        slices > 1 ? 1 : heads_together(scan, rows * columns * sizeof(opmath_t), threads);
    const int64_t groups = scan.heads / together;
    const int64_t grain = std::max<int64_t>(1, kGrain * slices / (work * together));
    at::parallel_for(0, scan.sequences * groups * slices, grain, [&](int64_t begin, int64_t end) {
      HeadScan<scalar_t> part(scan, twin, together, std::min(width, columns));
      for (int64_t task = begin; task < end; ++task) {
        const int64_t place = task / slices, first = task % slices * width;
        part.run(place / groups,
                 {place % groups * together, together, first, std::min(width, columns - first)});
      }
    });
  });
}

}  // namespace

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> linear_attention_cpu(
    const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const OptionalTensor& initial_kv,
    const OptionalTensor& initial_z, const OptionalTensor& key_padding_mask, const OptionalTensor& cu_seqlens,
    int64_t feature_map, bool causal, bool normalize, double eps) {
  check_linear_attention_inputs(q, k, v, initial_kv, initial_z, key_padding_mask, cu_seqlens, feature_map,
                                causal, eps);
  const auto call = prepare_linear_attention(q, k, v, initial_kv, initial_z, key_padding_mask, cu_seqlens,
                                             feature_map, causal, normalize, eps);
  run_scan(q.scalar_type(), call.scan);
  return {call.out, call.kv, call.z, call.denominator};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> linear_attention_backward_cpu(
    const at::Tensor& grad_out, const OptionalTensor& grad_kv, const OptionalTensor& grad_z,
    const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const OptionalTensor& initial_kv,
    const OptionalTensor& initial_z, const OptionalTensor& key_padding_mask, const OptionalTensor& cu_seqlens,
    const at::Tensor& out, const at::Tensor& kv, const at::Tensor& z, const at::Tensor& denominator,
    int64_t feature_map, bool causal, bool normalize, double eps) {
  check_linear_attention_inputs(q, k, v, initial_kv, initial_z, key_padding_mask, cu_seqlens, feature_map,
                                causal, eps);
  check_linear_attention_backward_inputs(grad_out, grad_kv, grad_z, q, v, cu_seqlens, out, kv, z, denominator,
                                         normalize);
  const auto call = prepare_linear_attention_backward(grad_out, grad_kv, grad_z, q, k, v, initial_kv,
                                                      initial_z, key_padding_mask, cu_seqlens, out, kv, z,
                                                      denominator, feature_map, causal, normalize, eps);
  // The last two are of the keys and of the values, over the same state.
  const auto& scans = call.scans;
  const size_t last = scans.size() - 1;
  for (size_t i = 0; i + 1 < last; ++i) run_scan(q.scalar_type(), scans[i]);
  run_scan(q.scalar_type(), scans[last], &scans[last - 1]);
  return {call.grad_q, call.grad_k, call.grad_v, call.grad_initial_kv, call.grad_initial_z};
}

}  // namespace flowops
