// One step of Glow in C++: actnorm folded into an invertible 1x1 convolution, then an affine coupling; data
// to noise, the log-likelihood with its gradient, and back.
#include <ATen/ATen.h>
#include <flowops/ops/affine_coupling.h>
#include <flowops/ops/invertible_conv1x1.h>
#include <flowops/ops/invertible_conv1x1_prepare.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>
#include <iostream>

namespace {

constexpr int64_t kBatch = 8, kChannels = 6, kSize = 16, kHalf = kChannels / 2, kPixels = kSize * kSize;

struct Step {
  at::Tensor mixing = at::eye(kChannels) + 0.1 * at::randn({kChannels, kChannels});
  at::Tensor actnorm_bias = at::zeros({kChannels}), actnorm_log_scale = at::zeros({kChannels});
  // The conditioner: a 3x3 convolution from the kept half to log-scales and shifts of the other.
  at::Tensor weight = 0.1 * at::randn({2 * kHalf, kHalf, 3, 3}), bias = at::zeros({2 * kHalf});

  std::tuple<at::Tensor, at::Tensor> couple(const at::Tensor& x, const at::Tensor& logdet,
                                            bool inverse) const {
    constexpr int64_t kExp = 1, kScaleThenShift = 0, kScaleShift = 0;
    const auto params = at::conv2d(x.narrow(1, 0, kHalf), weight, bias, /*stride=*/1, /*padding=*/1);
    return flowops::affine_coupling(x, params, /*amplitude=*/{}, /*mask=*/{}, logdet, /*start=*/kHalf, kExp,
                                    kScaleThenShift, kScaleShift, inverse);
  }

  // The 1x1 convolution with the actnorm before it, and their log-det.
  std::tuple<at::Tensor, at::Tensor> mix(const at::Tensor& x, bool inverse) const {
    const auto [weights, biases, logdet] =
        flowops::invertible_conv1x1_full({mixing}, {actnorm_bias}, {actnorm_log_scale}, inverse);
    return {flowops::invertible_conv1x1(x, weights[0], biases[0]), (kPixels * logdet).expand({x.size(0)})};
  }

  std::tuple<at::Tensor, at::Tensor> forward(const at::Tensor& x) const {
    const auto [y, logdet] = mix(x, false);
    return couple(y, logdet, false);
  }

  at::Tensor inverse(const at::Tensor& z) const {
    return std::get<0>(mix(std::get<0>(couple(z, at::zeros({z.size(0)}), true)), true));
  }
};

}  // namespace

int main() {
  at::manual_seed(0);
  Step step;
  for (at::Tensor* parameter : {&step.mixing, &step.weight}) parameter->requires_grad_();
  const auto x = at::randn({kBatch, kChannels, kSize, kSize});

  const auto [z, logdet] = step.forward(x);
  constexpr int64_t kDimensions = kChannels * kPixels;
  const auto log_normal = -0.5 * (z * z).flatten(1).sum(1) - 0.5 * kDimensions * std::log(2 * M_PI);
  const auto loss = -(log_normal + logdet).mean() / kDimensions;
  const auto gradients = torch::autograd::grad({loss}, {step.mixing, step.weight});

  const double error = (step.inverse(z) - x).abs().max().item<double>();
  std::cout << "nats per dimension " << loss.item<double>() << ", norms of the gradients "
            << gradients[0].norm().item<double>() << " and " << gradients[1].norm().item<double>()
            << ", error of the inverse " << error << '\n';
  return error < 1e-4 ? 0 : 1;
}
