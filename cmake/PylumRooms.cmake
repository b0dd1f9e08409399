# The ops and their kernels; also read by tests/cuda_emulator.
set(PYLUM_COMMON_CUDA device.cu sort.cu attention_batch.cu attention_bias.cu
                      attention_backward_float32.cu
                      attention_backward_bfloat16.cu attention_backward_float16.cu
                      attention_forward_float32.cu attention_forward_sm90.cu
                      attention_backward_sm90.cu
                      attention_forward_bfloat16.cu attention_forward_float16.cu)
list(TRANSFORM PYLUM_COMMON_CUDA PREPEND csrc/common/cuda/)
pylum_add_op(append_pages CPU base.cpp CUDA forward.cu)
pylum_add_op(attention CUDA_IN_COMMON CPU forward.cpp backward.cpp BF16 forward.cpp
              backward.cpp AMX forward.cpp backward.cpp)
# Its CPU kernel is attention's.
pylum_add_op(prefix_attention CUDA_IN_COMMON)
pylum_add_op(query_layer CPU layer.cpp BF16 layer.cpp)
pylum_add_op(dot_interaction CPU base.cpp CUDA forward.cu backward.cu)
pylum_add_op(embedding_bag CPU base.cpp CUDA forward.cu)
pylum_add_op(embedding_sequence CPU base.cpp CUDA forward.cu)
pylum_add_op(row_wise CPU base.cpp CUDA forward.cu)
pylum_add_op(sampled_softmax CPU shared.cpp per_query.cpp BF16 pairs.cpp AMX pairs.cpp
             CUDA forward.cu queries.cu scatter.cu pass_float32.cu pass_bfloat16.cu pass_float16.cu)
pylum_add_op(linear CPU base.cpp)
# Not an op: the rate that benchmarks hold the ops against.
pylum_add_op(multiply_adds CPU base.cpp BF16 base.cpp)
pylum_add_op(residual_norm CPU base.cpp CUDA forward.cu backward.cu)
pylum_add_op(rotary CPU base.cpp CUDA run.cu)
pylum_add_op(swiglu CPU base.cpp CUDA run.cu)
pylum_add_op(topk CPU topk.cpp BF16 topk.cpp AMX topk.cpp CUDA forward.cu)
