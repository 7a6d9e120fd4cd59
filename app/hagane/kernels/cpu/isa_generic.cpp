// Every kernel for any machine the compiler was asked for.
#include "ops.h"

#include <cmath>
#include <utility>

namespace hagane {
namespace {

#include "lanes.inc"
#include "hadamard.inc"

#include "attention.inc"
#include "elementwise.inc"
#include "store.inc"
#include "training.inc"
#include "pretraining.inc"
#include "sampling.inc"
#include "linear.inc"
#include "lora.inc"
#include "attention_training.inc"

constexpr Kernels kKernels{"generic", prepare, linear, expand, rms_norm,
                           silu_and_mul, embed, rotary, store, attend, draw, greatest,
                           rms_norm_backward, silu_and_mul_backward, rotary_backward, token_score,
                           norm, norm_backward, causal_softmax,
                           attend_sequence<linear>, attend_sequence_backward<linear>};

}  // namespace

const Kernels* generic_kernels() { return &kKernels; }

}  // namespace hagane
