// One step of SGD and of Adam for one element, or a vector of them, as torch.optim takes it. The loops around it are
// the CPU's and the GPU's own.
#pragma once

#include <math.h>

#include "inline.h"

namespace wuskern {

template <typename Acc>
struct SgdNumbers {
  Acc lr, momentum, gradient_share, weight_decay;  // share: of a gradient in the momentum buffer, 1 - dampening
  Acc sign;                                        // -1: maximize
  bool nesterov;
};

template <typename Acc>
WUSKERN_INLINE SgdNumbers<Acc> sgd_numbers(double lr, double momentum, double dampening, double weight_decay,
                                           bool nesterov, bool maximize) {
  SgdNumbers<Acc> n;
  n.lr = static_cast<Acc>(lr);
  n.momentum = static_cast<Acc>(momentum);
  n.gradient_share = static_cast<Acc>(1 - dampening);
  n.weight_decay = static_cast<Acc>(weight_decay);
  n.sign = maximize ? -1 : 1;
  n.nesterov = nesterov;
  return n;
}

template <bool has_buffer, typename Acc, typename X>
WUSKERN_INLINE void sgd(const SgdNumbers<Acc>& n, X& param, X& buffer, X gradient) {
  gradient *= n.sign;
  if (n.weight_decay != 0) gradient += n.weight_decay * param;  // 0 * inf would be a NaN
  if constexpr (has_buffer) {
    buffer = n.momentum * buffer + n.gradient_share * gradient;
    gradient = n.nesterov ? gradient + n.momentum * buffer : buffer;
  }
  param -= n.lr * gradient;
}

// The arguments of the op.
struct AdamArguments {
  double lr, beta1, beta2, eps, weight_decay;
  bool decoupled, maximize;
};

template <typename Acc>
struct AdamNumbers {
  Acc beta1, share1, beta2, share2, eps;  // share: of a gradient in a moment, 1 - beta
  Acc coupled_decay, kept;                // kept: of the parameter under decoupled decay
  Acc step_size, root_factor;             // lr and 1, each over its bias correction
  Acc sign;
};

template <typename Acc>
WUSKERN_INLINE AdamNumbers<Acc> adam_numbers(const AdamArguments& a, double step) {
  AdamNumbers<Acc> n;
  n.beta1 = static_cast<Acc>(a.beta1);
  n.share1 = static_cast<Acc>(1 - a.beta1);
  n.beta2 = static_cast<Acc>(a.beta2);
  n.share2 = static_cast<Acc>(1 - a.beta2);
  n.eps = static_cast<Acc>(a.eps);
  n.coupled_decay = static_cast<Acc>(a.decoupled ? 0 : a.weight_decay);
  n.kept = static_cast<Acc>(a.decoupled ? 1 - a.lr * a.weight_decay : 1);
  n.step_size = static_cast<Acc>(a.lr / (1 - pow(a.beta1, step)));
  n.root_factor = static_cast<Acc>(1 / sqrt(1 - pow(a.beta2, step)));
  n.sign = a.maximize ? -1 : 1;
  return n;
}

// `root`: the square root of an X.
template <bool amsgrad, typename Acc, typename X, typename Root>
WUSKERN_INLINE void adam(const AdamNumbers<Acc>& n, X& param, X& first, X& second, X& most, X gradient, Root&& root) {
  gradient *= n.sign;
  if (n.coupled_decay != 0) gradient += n.coupled_decay * param;
  param *= n.kept;
  first = n.beta1 * first + n.share1 * gradient;
  second = n.beta2 * second + n.share2 * (gradient * gradient);
  if constexpr (amsgrad) most = (second > most) | (second != second) ? second : most;  // a NaN stays one
  param -= n.step_size * (first / (root(amsgrad ? most : second) * n.root_factor + n.eps));
}

}  // namespace wuskern
