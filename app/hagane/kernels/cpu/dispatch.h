// Picks the instruction set once, and splits every operation over the pool's threads.
#pragma once

#include <functional>
#include <vector>

#include "ops.h"

namespace hagane {

// The best instruction set of this machine, or the one named; null if it is not to be had here.
const Kernels* find_kernels(const char* name);
void use_kernels(const Kernels* kernels);
const Kernels* active_kernels();

// An operation, or several one after the other, of which each computes row r from the same row of what it
// reads, and writes where no other row is read.
struct RowWork {
  int64_t rows = 0;
  int64_t bytes = 0;  // of work for each row, as reading them would take
  std::vector<std::function<void(int64_t row)>> passes;

  void operator()(int64_t row) const {
    for (const auto& pass : passes) pass(row);
  }
  // Whether `next` could be taken in.
  bool append(const RowWork& next) {
    if (rows != next.rows) return false;
    bytes += next.bytes;
    passes.insert(passes.end(), next.passes.begin(), next.passes.end());
    return true;
  }
};

// The MLPs of a mixture: gate and up of each in one matrix, and down.
struct Experts {
  std::vector<const Weight*> gate_up, down;
};

struct ExpertsWork {
  const Experts* experts;
  Matrix x;
  int64_t rows, chosen;
  const int32_t* numbers;  // [rows, chosen]: experts
  const float* weights;    // [rows, chosen]
  Activation::Kind kind;
  bool gated;
  Matrix out;
  const void* residual;  // like out, or null
};

// Each head of x [rows, heads * width] times a matrix of its own, unquantized and of one shape: it reads the first
// features of its head, and writes the first of a head of out [rows, heads * room].
struct HeadsWork {
  std::vector<const Weight*> weights;
  Matrix x, out;
  int64_t rows, width, room;
};

struct LinearWork {
  const Weight* weight;
  Matrix x;
  int64_t rows;
  Matrix out;
  const void* residual;   // like out, or null
  // The slot in `bank` of each row's adapter, -1 for none; both null for none at all.
  const Bank* bank;
  const int32_t* slots;   // [rows]
  RowWork before{};       // what x waits for, if anything
};

// Returns the first row with NaN or an infinity, or -1.
int64_t run_quantize(const Weights& weights);
// Rows [rows][row_bytes] as they are stored -> lines of a packed matrix, zeros beyond its edges.
void run_pack(const std::byte* stored, int64_t rows, int64_t row_bytes, uint32_t* lines, int64_t units);
void run_pack_grouped(const GroupedCodes& codes);
// The first row of a float matrix with NaN or an infinity, or -1.
int64_t run_find_nonfinite(const Matrix& x, int64_t rows, int64_t columns);
void run_rows(const RowWork& work);
void run_linear(const LinearWork& work);
void run_heads(const HeadsWork& work);
void run_experts(const ExpertsWork& work);
RowWork routing_rows(const Routing& routing);
// By logits, chosen, jitter and scale alone.
RowWork sparse_routing_rows(const Routing& routing);
RowWork gated_rows(const GatedRows& gated);
RowWork norm_rows(const RowNorm& norm);
RowWork activation_rows(const Activation& activation);
RowWork scaled_add_rows(const ScaledAdd& add);
RowWork silu_and_mul_rows(const Matrix& gate_up, int64_t rows, int64_t features, const Matrix& out);
RowWork rotary_rows(const Rotary& rotary);
RowWork latent_rows(const LatentHeads& latent);
RowWork latent_key_rows(const LatentKeys& latent);
RowWork narrow_rows(const NarrowHeads& narrow);
RowWork store_rows(const Store& store);
void run_embed(const Weight& weight, const int64_t* ids, int64_t rows, const Matrix& out);
void run_rope_tables(const RopeTables& a);
// Rows `indices` of x, one after the other.
void run_gather(const Matrix& x, const int64_t* indices, int64_t rows, int64_t features, const Matrix& out);
// The memory that the next attention reads: prefetched by the products before it.
void run_prefetch(const Attention& attention);
void run_softcap(const Softcap& softcap);
void run_attention(const Attention& attention);
void run_sample(const Sampling& sampling);
void run_argmax(const Argmax& argmax);
void run_heaviest(const Heaviest& heaviest);
void run_restrict(const Restriction& restriction);

void run_rms_norm_backward(const Matrix& grad, const Matrix& x, const void* weight, float eps,
                           int64_t rows, int64_t features, const Matrix& out);
void run_silu_and_mul_backward(const Matrix& grad, const Matrix& gate_up, int64_t rows,
                               int64_t features, const Matrix& out);
void run_rotary_backward(const Rotary& grad, const Matrix& before);
void run_token_scores(const TokenScores& scores);

void run_norm(const Norm& norm);
void run_norm_backward(const NormBackward& norm);
void run_causal_softmax(const CausalSoftmax& softmax);
void run_sequence_attention(const SequenceAttention& attention, bool backward);

}  // namespace hagane
