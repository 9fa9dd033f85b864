/* The weights of a product: which tile takes them, quantized panels widened for the tiles of floats (contract: gemm.h).
 *
 * Widening a group of columns costs about a hundredth of the tiles that then read it, once per
 * block of rows, and leaves the tiles what they are for weights of the file's own. Integers of 8
 * bits are exact in bfloat16, and their scale waits for the epilogue; integers of 4 bits are
 * multiplied by the scales of their groups here. */
#include "gemm.h"

#include <string.h>

/* Are rows of this type multiplied as bfloat16? A build without f32 rounds the few float32 ones (a
 * prompt's, a time's) to it. */
static bool rows_are_bf16(const struct dpk_cpu *cpu, int x_dtype) {
    return cpu->k->tile_bf16_bf16.fn && (x_dtype == DPK_BF16 || !DPK_HAS_f32);
}

bool dpk_gemm_weight(struct dpk_gemm *g, const struct dpk_cpu *cpu, const struct dpk_weight *w,
                     int x_dtype) {
    const bool bf16 = rows_are_bf16(cpu, x_dtype);
    int group = dpk_panel_group(w->dtype), tile_dtype = w->dtype;
    uint64_t taps = 1, channels = (uint64_t)w->shape.dim[w->shape.rank - 1];
    g->k = cpu->k;
    g->w = w;
    g->strip_dtype = 0;
    if (w->dtype == DPK_S8 && w->flags & DPK_TENSOR_DYNAMIC) {
        g->a_dtype = DPK_S8;
        g->rows8 = dpk_rows8_of(cpu, x_dtype, w->flags);
        g->tile = dpk_cpu_tile_s8(cpu->isa, cpu->dot);
    } else {
        if (w->dtype == DPK_S8) g->strip_dtype = DPK_BF16;
        if (w->dtype == DPK_S4) g->strip_dtype = bf16 ? DPK_BF16 : DPK_F32;
        if (g->strip_dtype) tile_dtype = g->strip_dtype;
        g->a_dtype = bf16 && tile_dtype == DPK_BF16 ? DPK_BF16 : DPK_F32;
        if (!DPK_HAS_f32 && g->a_dtype == DPK_F32) return false;
        g->tile = dpk_cpu_tile(cpu->isa, g->a_dtype, tile_dtype);
    }
    if (!g->tile || group == 0) return false;
    if (g->strip_dtype && !g->k->widen_s8) return false; /* a build without int8 */
    if (w->shape.rank == 4) taps = (uint64_t)w->shape.dim[1] * (uint64_t)w->shape.dim[2];
    g->c_padded = dpk_round_up((size_t)channels, (size_t)group);
    if (taps * g->c_padded > (g->a_dtype == DPK_S8 ? DPK_MAX_INT8_K : INT32_MAX)) return false;
    g->k_padded = (size_t)taps * g->c_padded;
    size_t row_bytes = w->dtype == DPK_S4   ? g->k_padded / 2
                       : w->dtype == DPK_S8 ? g->k_padded
                                            : g->k_padded * dpk_dtype_bytes(w->dtype);
    g->b_stride = 16 * row_bytes;
    g->tile_stride = g->b_stride;
    g->tile_group = dpk_panel_group(tile_dtype);
    if (g->strip_dtype) g->tile_stride = g->k_padded * 16 * dpk_dtype_bytes(g->strip_dtype);
    g->scales_bytes = w->dtype == DPK_S4 ? g->k_padded / (size_t)w->group * 64 : 0;
    return true;
}

/* ---- Columns --------------------------------------------------------------------------------- */

/* The row of the weight that is column c of panel p; -1: none, zeros stand there. */
static int64_t weight_row(const struct dpk_weight *w, int64_t p, int c) {
    int64_t rows = w->shape.dim[0];
    if (w->layout != DPK_LAYOUT_PANEL_GLU) return p * 16 + c < rows ? p * 16 + c : -1;
    int64_t f = p * 8 + c % 8;
    if (f >= rows / 2) return -1;
    return c < 8 ? f : rows / 2 + f;
}

/* scale [rows][groups] of the file to [groups][16] of panel p. */
static void gather_scales(const struct dpk_weight *w, int64_t p, size_t groups, float *to) {
    for (int c = 0; c < 16; c++) {
        int64_t row = weight_row(w, p, c);
        const float *from = row < 0 ? NULL : w->scale + (size_t)row * groups;
        for (size_t i = 0; i < groups; i++) to[i * 16 + (size_t)c] = from ? from[i] : 0.0f;
    }
}

static void widen(const struct dpk_gemm *g, int32_t p, int32_t n, char *strip) {
    float *scales = (float *)(void *)(strip + g->tile_stride * (size_t)g->tile->np);
    for (int32_t i = 0; i < n; i++) {
        const char *from = (const char *)g->w->data + (size_t)(p + i) * g->b_stride;
        char *to = strip + (size_t)i * g->tile_stride;
        if (g->w->dtype == DPK_S8) {
            g->k->widen_s8((uint16_t *)(void *)to, (const int8_t *)from, g->k_padded / 4);
        } else {
            size_t group = (size_t)g->w->group;
            gather_scales(g->w, p + i, g->k_padded / group, scales);
            g->k->widen_s4(to, g->strip_dtype, (const uint8_t *)from, g->k_padded / 8, scales,
                           group / 8);
        }
    }
}

void dpk_gemm_columns(const struct dpk_gemm *g, int32_t p, int32_t n, void *scratch,
                      struct dpk_gemm_columns *columns) {
    const struct dpk_weight *w = g->w;
    columns->b = (const char *)w->data + (size_t)p * g->b_stride;
    columns->scaled = w->dtype == DPK_S8 && g->strip_dtype;
    if (g->strip_dtype) {
        widen(g, p, n, scratch);
        columns->b = scratch;
    }
    if (w->dtype != DPK_S8) return;
    for (int32_t c = 0; c < 16 * n; c++) {
        int64_t row = weight_row(w, p + c / 16, c % 16);
        columns->scale[c] = row < 0 ? 0.0f : w->scale[row];
        columns->offset[c] = row < 0 ? 0 : (int32_t)((uint32_t)w->colsum[row] * 0xffffff80u);
    }
}
