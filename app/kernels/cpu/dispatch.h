// Picks the instruction set once, and splits every operation over the pool's threads.
#pragma once

#include "ops.h"

namespace hagane {

// The best instruction set of this machine, or the one named; null if it is not to be had here.
const Kernels* find_kernels(const char* name);
void use_kernels(const Kernels* kernels);

// `slots` [rows] says whose change in `bank` each row has, -1 for none; both null for none at all.
void run_linear(const Weight& weight, const Matrix& x, int64_t rows, const Matrix& out,
                const void* residual, const Bank* bank, const int32_t* slots);
void run_rms_norm(const Matrix& x, const void* weight, float eps, int64_t rows, int64_t features,
                  const Matrix& out);
void run_silu_and_mul(const Matrix& gate_up, int64_t rows, int64_t features, const Matrix& out);
void run_embed(const Weight& weight, const int64_t* ids, int64_t rows, const Matrix& out);
void run_angles(const Angles& a);
// Rows `indices` of x, one after the other.
void run_gather(const Matrix& x, const int64_t* indices, int64_t rows, int64_t features, const Matrix& out);
void run_rotary(const Rotary& rotary);
void run_store(const Store& store);
// What that attention reads: to be fetched by the products before it.
void run_fetch(const Attention& attention);
void run_attention(const Attention& attention);
void run_draw(const Draw& draw);
void run_greatest(const Greatest& greatest);

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
