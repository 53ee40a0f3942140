// What the kernels of affine_coupling get, on both backends. Torch-free.
#pragma once

#include <cstdint>

#include "common/operand.h"

namespace flowops {

// Those from kFlooredSigmoid on are picked by the constants, not by the caller.
enum class ScaleMap : int {
  kAdditive = 0,
  kExp = 1,
  kTanhExp = 2,
  kSigmoid = 3,
  kReciprocalSigmoid = 4,
  kAtanExp = 5,
  kSoftsignExp = 6,
  kSoftplus = 7,
  kFlooredSigmoid = 8,
};

// See ScaleInput of math/affine_coupling.h.
struct ScaleConstants {
  double gain = 1, limit = 1, floor = 0;
};

// A block of channels that passes through unchanged.
struct KeptBlock {
  Operand source, target;
  int64_t outer = 0, inner = 0;
};

struct AffineCouplingParams {
  int64_t batch = 0, outer = 0, inner = 0;
  ScaleMap scale_map = ScaleMap::kExp;
  ScaleConstants constants;
  bool shift_then_scale = false, inverse = false;
  Operand x, raw, shift, z;         // forward reads x, raw, shift and writes z
  Operand amplitude, mask;          // optional; the limit in the accumulation type; bool, true where kept
  KeptBlock kept[2];                // channels before and after the moved ones
  const void* logdet_in = nullptr;  // (batch,), accumulation type, optional
  void* logdet = nullptr;           // (batch,), accumulation type
};

struct AffineCouplingBackwardParams {
  int64_t batch = 0, outer = 0, inner = 0;
  ScaleMap scale_map = ScaleMap::kExp;
  ScaleConstants constants;
  bool shift_then_scale = false, inverse = false;
  Operand grad_z, saved, raw;
  Operand amplitude, mask;
  Operand grad_x, grad_raw, grad_shift;
  Operand grad_amplitude;  // optional, element by element in the accumulation type, (batch, outer, inner)
  KeptBlock kept[2];
  const void* grad_logdet = nullptr;  // (batch,), accumulation type
  int64_t grad_logdet_stride = 0;
};

}  // namespace flowops
