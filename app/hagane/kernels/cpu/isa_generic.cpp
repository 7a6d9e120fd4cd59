// Every kernel for any machine the compiler was asked for.
#include "ops.h"

#include <cmath>
#include <utility>

namespace hagane {
namespace {

#include "lanes.inc"
#include "grouped.inc"
#include "hadamard.inc"
#include "quantize.inc"

#include "attention.inc"
#include "elementwise.inc"
#include "experts.inc"
#include "latent.inc"
#include "activation.inc"
#include "store.inc"
#include "training.inc"
#include "pretraining.inc"
#include "sampling.inc"
#include "linear.inc"
#include "lora.inc"
#include "attention_training.inc"
#include "table.inc"

constexpr Kernels kKernels = table_of<linear, paged_attention>("generic");

}  // namespace

const Kernels* generic_kernels() { return &kKernels; }

}  // namespace hagane
