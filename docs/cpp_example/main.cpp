// One affine coupling step in C++: data to noise, its log-likelihood and gradient, and back.
#include <ATen/ATen.h>
#include <flowops/ops/affine_coupling.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>
#include <iostream>

int main() {
  at::manual_seed(0);
  constexpr int64_t kBatch = 8, kChannels = 6, kSize = 16, kHalf = kChannels / 2;
  const auto x = at::randn({kBatch, kChannels, kSize, kSize});

  // The conditioner: a 3x3 convolution from the kept half to log-scales and shifts of the other.
  const auto weight = (0.1 * at::randn({2 * kHalf, kHalf, 3, 3})).requires_grad_();
  const auto bias = at::zeros({2 * kHalf}).requires_grad_();
  const auto conditioner = [&](const at::Tensor& kept) {
    return at::conv2d(kept, weight, bias, /*stride=*/1, /*padding=*/1);
  };

  constexpr int64_t kExp = 1, kScaleThenShift = 0, kScaleShift = 0;
  const auto step = [&](const at::Tensor& input, bool inverse) {
    return flowops::affine_coupling(
        input, conditioner(input.narrow(1, 0, kHalf)), /*amplitude=*/{}, /*mask=*/{},
        /*logdet=*/{}, /*start=*/kHalf, kExp, kScaleThenShift, kScaleShift, inverse);
  };

  const auto [z, logdet] = step(x, /*inverse=*/false);
  const double dimensions = kChannels * kSize * kSize;
  const auto log_normal = -0.5 * (z * z).flatten(1).sum(1) - 0.5 * dimensions * std::log(2 * M_PI);
  const auto loss = -(log_normal + logdet).mean() / dimensions;
  const auto gradients = torch::autograd::grad({loss}, {weight, bias});

  const auto back = std::get<0>(step(z, /*inverse=*/true));
  const double error = (back - x).abs().max().item<double>();
  std::cout << "nats per dimension " << loss.item<double>() << ", norm of the weight's gradient "
            << gradients[0].norm().item<double>() << ", error of the inverse " << error << '\n';
  return error < 1e-4 ? 0 : 1;
}
