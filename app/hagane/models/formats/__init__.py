"""How weights are stored: one file per format, with the layer that holds and computes with it.

Storage is the same on disk and in memory until a model is packed for serving:

    dense   weight       [out, in]            float
    int8    weight_int8  [out, in]            int8
            scale        [out]                float32, one per output
    fp8     weight_fp8   [out, in]            float8_e4m3fn
            scale        [out]                float32, one per output
    int4    weight_int4  [out, in / 2]        uint8; bytes 4j to 4j + 3 hold inputs 8j to 8j + 7,
                                              the first four in the low halves, the others in the
                                              high halves, each stored plus 8
            scale        [out, in / group]    bfloat16, one per group of inputs

Quantization is symmetric. Codes of int8 and int4 may be those of weights that are rotated along
their inputs (`reference.hadamard`, in blocks of `rotation`); the inputs are then rotated alike.
With outliers among the inputs 8 bits lose much, after a rotation hardly anything.
"""
