// Every kernel for AVX2 and FMA.
#include "ops.h"

#include <cmath>
#include <utility>

#if defined(__x86_64__)
#include <immintrin.h>

// After the headers: what they define stays runnable everywhere.
#pragma GCC target("avx2,fma,f16c,bmi,bmi2")

#define HAGANE_AVX2

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
#include "tiles.inc"
#include "linear_avx2.inc"
#include "lora.inc"
#include "attention_training.inc"

constexpr Kernels kKernels{"avx2", prepare, linear_avx2, expand, rms_norm,
                           silu_and_mul, embed, rotary, store, attend, draw, greatest,
                           rms_norm_backward, silu_and_mul_backward, rotary_backward, token_score,
                           norm, norm_backward, causal_softmax,
                           attend_sequence<linear_avx2>, attend_sequence_backward<linear_avx2>};

}  // namespace

const Kernels* avx2_kernels() { return &kKernels; }

}  // namespace hagane

#else

namespace hagane {
const Kernels* avx2_kernels() { return nullptr; }
}  // namespace hagane
#endif
