#include "zb_kernels.h"

/* Right shifts of negative numbers must be arithmetic: else this array has a negative size. */
typedef char zb_shifts_are_arithmetic[((int32_t)-1 >> 1) == -1 ? 1 : -1];

static int32_t clamp(int32_t value, int32_t low, int32_t high)
{
    return value < low ? low : value > high ? high : value;
}

/* floor((sum * multiplier + 2^(shift - 1)) / 2^shift). From 33 on the upper word of the product has all of it. */
static int32_t scale(int32_t sum, int32_t multiplier, uint32_t shift)
{
    const int64_t product = (int64_t)sum * multiplier;
    if (shift >= 33) {
        return ((int32_t)(product >> 32) + ((int32_t)1 << (shift - 33))) >> (shift - 32);
    }
    const int64_t wide = (product + ((int64_t)1 << (shift - 1))) >> shift;
    return wide < INT32_MIN ? INT32_MIN : wide > INT32_MAX ? INT32_MAX : (int32_t)wide;
}

/* A stored byte as a number; sign is 128 if it is signed, else 0. */
static int32_t number(uint8_t stored, int32_t sign)
{
    return ((int32_t)stored ^ sign) - sign;
}

static int32_t at_most(int32_t a, int32_t b)
{
    return a < b ? a : b;
}

/* ---- weights ---- */

static int32_t row_bits(const zb_conv_spec *op, int32_t row)
{
    return row < op->rows_2 ? 2 : row < op->rows_2 + op->rows_4 ? 4 : 8;
}

/* Put a row where it can be read as int8: in `buffer`, or where it is. Returns the byte behind it. */
static const uint8_t *unpack(const uint8_t *from, int32_t bits, int32_t length, int8_t *buffer, const int8_t **row)
{
    if (bits == 8) {
        *row = (const int8_t *)from;
        return from + length;
    }
    *row = buffer;
    int8_t *const end = buffer + length;
    if (bits == 4) {
        for (; buffer + 1 < end; buffer += 2) {
            const int32_t byte = *from++;
            buffer[0] = (int8_t)((byte & 15) - 8);
            buffer[1] = (int8_t)((byte >> 4) - 8);
        }
        if (buffer < end) {
            *buffer = (int8_t)((*from++ & 15) - 8);
        }
        return from;
    }
    for (; buffer + 3 < end; buffer += 4) {
        const int32_t byte = *from++;
        buffer[0] = (int8_t)((byte & 3) - 2);
        buffer[1] = (int8_t)((byte >> 2 & 3) - 2);
        buffer[2] = (int8_t)((byte >> 4 & 3) - 2);
        buffer[3] = (int8_t)((byte >> 6) - 2);
    }
    if (buffer < end) {
        int32_t byte = *from++;
        for (; buffer < end; byte >>= 2) {
            *buffer++ = (int8_t)((byte & 3) - 2);
        }
    }
    return from;
}

/* ---- windows ---- */

/* Positions of a kernel that lie inside the input along one dimension: first..end - 1; start is that of position 0. */
typedef struct {
    int32_t start, first, end;
} span;

static span inside(int32_t index, int32_t stride, int32_t pad, int32_t kernel, int32_t dilation, int32_t size)
{
    span s = {index * stride - pad, 0, kernel};
    if (s.start < 0) {
        s.first = (dilation - 1 - s.start) / dilation;
    }
    if (s.start + (kernel - 1) * dilation >= size) {
        s.end = size > s.start ? (size - s.start + dilation - 1) / dilation : 0;
    }
    if (s.end < s.first) {
        s.end = s.first;
    }
    return s;
}

/* The part of a window that is inside the input, and the weights for it: lines of taps of runs. */
typedef struct {
    const uint8_t *in;
    int32_t lines, next_line, first_weight, next_weights;
    int32_t taps, run, gap; /* gap: from behind a run to the next */
} window;

#if defined(__GNUC__)
#define ZB_ALONE __attribute__((noinline))
#else
#define ZB_ALONE
#endif

#define ZB_INPUT uint8_t
#define ZB_NAME(name) name##_u8
#include "zb_window.inc"
#undef ZB_INPUT
#undef ZB_NAME
#define ZB_INPUT int8_t
#define ZB_NAME(name) name##_s8
#include "zb_window.inc"
#undef ZB_INPUT
#undef ZB_NAME

static void set_columns(window *at, const zb_conv_spec *op, span h)
{
    const int32_t positions = h.end - h.first, step = op->dilation_w * op->in_channels;
    const int joined = step == op->depth; /* positions along a kernel's line lie next to each other */
    at->taps = joined ? 1 : positions;
    at->run = joined ? positions * op->depth : op->depth;
    at->gap = step - op->depth;
    at->next_line = op->dilation_h * op->in_w * op->in_channels;
    at->next_weights = op->kernel_w * op->depth;
}

/* Rows of weights over all positions; y or wide is where results go. */
static void convolve_rows(const zb_conv_spec *op, const uint8_t *x, uint8_t *y, int32_t *wide, int32_t row, int32_t rows,
                          const int8_t *const weights[4])
{
    window at;
    for (int32_t oy = 0; oy < op->out_h; oy++) {
        const span v = inside(oy, op->stride_h, op->pad_top, op->kernel_h, op->dilation_h, op->in_h);
        const int32_t line = (v.start + v.first * op->dilation_h) * op->in_w;
        for (int32_t ox = 0; ox < op->out_w; ox++) {
            const span h = inside(ox, op->stride_w, op->pad_left, op->kernel_w, op->dilation_w, op->in_w);
            int32_t sums[4];
            for (int32_t i = 0; i < 4; i++) {
                sums[i] = i < rows ? op->bias[row + i] : 0;
            }
            if (h.end > h.first && v.end > v.first) {
                set_columns(&at, op, h);
                at.lines = v.end - v.first;
                at.in = x + (line + h.start + h.first * op->dilation_w) * op->in_channels;
                at.first_weight = (v.first * op->kernel_w + h.first) * op->depth;
                if (rows > 1) {
                    (op->sign != 0 ? sum_four_s8 : sum_four_u8)(&at, weights, sums);
                } else {
                    sums[0] = (op->sign != 0 ? sum_one_s8 : sum_one_u8)(&at, weights[0], sums[0]);
                }
            }
            const int32_t position = (oy * op->out_w + ox) * op->out_channels;
            for (int32_t i = 0; i < rows; i++) {
                const int32_t channel = op->order != NULL ? op->order[row + i] : op->first_channel + row + i;
                const int32_t result = scale(sums[i], op->ratio.multiplier[row + i], op->ratio.shift[row + i]);
                if (wide != NULL) {
                    wide[position + channel] = result;
                } else {
                    y[position + channel] = (uint8_t)clamp(result, op->low, op->high);
                }
            }
        }
    }
}

static void convolve(const zb_conv_spec *op, const uint8_t *x, uint8_t *y, int32_t *wide, int8_t *scratch)
{
    const int32_t channels = op->rows_2 + op->rows_4 + op->rows_8;
    const int32_t length = op->kernel_h * op->kernel_w * op->depth;
    const uint8_t *packed = op->weights;
    for (int32_t row = 0; row < channels; row += 4) {
        const int32_t rows = at_most(4, channels - row);
        const int8_t *weights[4] = {NULL, NULL, NULL, NULL};
        for (int32_t i = 0; i < rows; i++) {
            const int32_t bits = row_bits(op, row + i);
            packed = unpack(packed, bits, length, bits < 8 ? scratch + i * length : NULL, &weights[i]);
        }
        for (int32_t i = rows; i < 4; i++) {
            weights[i] = weights[0]; /* summed and dropped: cheaper than two or three rows one by one */
        }
        convolve_rows(op, x + op->first_input, y, wide, row, rows, weights);
    }
}

void zb_convolve(const zb_conv_spec *op, const uint8_t *x, uint8_t *y, int8_t *scratch)
{
    convolve(op, x, y, NULL, scratch);
}

void zb_convolve_i32(const zb_conv_spec *op, const uint8_t *x, int32_t *y, int8_t *scratch)
{
    convolve(op, x, NULL, y, scratch);
}

static void depthwise(const zb_depthwise_spec *layer, const uint8_t *x, uint8_t *y, int32_t *wide, int8_t *scratch)
{
    const zb_conv_spec *const op = &layer->conv;
    const int32_t channels = op->rows_2 + op->rows_4 + op->rows_8;
    const uint8_t *packed = op->weights;
    for (int32_t row = 0; row < channels; row++) {
        const int8_t *weights[4] = {NULL, NULL, NULL, NULL};
        const int32_t channel = op->order != NULL ? op->order[row] : op->first_channel + row;
        packed = unpack(packed, row_bits(op, row), op->kernel_h * op->kernel_w, scratch, &weights[0]);
        convolve_rows(op, x + channel / layer->multiple, y, wide, row, 1, weights);
    }
}

void zb_convolve_depthwise(const zb_depthwise_spec *op, const uint8_t *x, uint8_t *y, int8_t *scratch)
{
    depthwise(op, x, y, NULL, scratch);
}

void zb_convolve_depthwise_i32(const zb_depthwise_spec *op, const uint8_t *x, int32_t *y, int8_t *scratch)
{
    depthwise(op, x, NULL, y, scratch);
}

void zb_max_pool(const zb_pool_spec *op, const uint8_t *x, uint8_t *y)
{
    for (int32_t oy = 0; oy < op->out_h; oy++) {
        const span v = inside(oy, op->stride_h, op->pad_top, op->kernel_h, 1, op->in_h);
        for (int32_t ox = 0; ox < op->out_w; ox++) {
            const span h = inside(ox, op->stride_w, op->pad_left, op->kernel_w, 1, op->in_w);
            for (int32_t c = 0; c < op->channels; c++) {
                int32_t best = -128;
                for (int32_t ky = v.first; ky < v.end; ky++) {
                    for (int32_t kx = h.first; kx < h.end; kx++) {
                        const int32_t at = (v.start + ky) * op->in_w + h.start + kx;
                        const int32_t value = number(x[at * op->channels + c], op->sign);
                        best = value > best ? value : best;
                    }
                }
                *y++ = (uint8_t)clamp(best, op->low, op->high);
            }
        }
    }
}

void zb_mean_pool(const zb_pool_spec *op, const uint8_t *x, uint8_t *y)
{
    for (int32_t oy = 0; oy < op->out_h; oy++) {
        const span v = inside(oy, op->stride_h, op->pad_top, op->kernel_h, 1, op->in_h);
        for (int32_t ox = 0; ox < op->out_w; ox++) {
            const span h = inside(ox, op->stride_w, op->pad_left, op->kernel_w, 1, op->in_w);
            const int32_t count = (v.end - v.first) * (h.end - h.first);
            const int32_t entry = op->ratio_by_count && count > 0 ? count - 1 : 0;
            for (int32_t c = 0; c < op->channels; c++) {
                int32_t sum = 0;
                for (int32_t ky = v.first; ky < v.end; ky++) {
                    for (int32_t kx = h.first; kx < h.end; kx++) {
                        const int32_t at = (v.start + ky) * op->in_w + h.start + kx;
                        sum += number(x[at * op->channels + c], op->sign);
                    }
                }
                sum = scale(sum, op->ratio.multiplier[entry], op->ratio.shift[entry]);
                *y++ = (uint8_t)clamp(sum, op->low, op->high);
            }
        }
    }
}

/* ---- value by value ---- */

void zb_requantize(const zb_rescale_spec *op, const uint8_t *x, uint8_t *y)
{
    for (uint32_t i = 0; i < op->length; i++) {
        y[i] = (uint8_t)clamp(scale(number(x[i], op->sign), op->multiplier, op->shift), op->low, op->high);
    }
}

void zb_look_up(const zb_lookup_spec *op, const uint8_t *x, uint8_t *y)
{
    uint32_t i = 0;
    while (i < op->length) {
        for (uint32_t t = 0; t < op->tables; t++) {
            const uint8_t *const table = op->table + 256 * t;
            for (uint32_t j = 0; j < op->inner; j++, i++) {
                y[i] = table[x[i]];
            }
        }
    }
}

/* Places of two operands while all but the innermost dimension are counted up. */
typedef struct {
    int32_t index[ZB_MAX_DIMS];
    int32_t left, right;
} walk;

/* Step to the next run of the innermost dimension; 0 when there is none. */
static int next(walk *w, uint32_t dims, const int32_t *size, const int32_t *left, const int32_t *right)
{
    for (uint32_t d = dims - 1; d-- > 0;) {
        w->left += left[d];
        w->right += right[d];
        if (++w->index[d] < size[d]) {
            return 1;
        }
        w->left -= left[d] * size[d];
        w->right -= right[d] * size[d];
        w->index[d] = 0;
    }
    return 0;
}

/* Operands are moved up by 20 bits, so that the upper word of the products has all of the result: shift is that of the
 * ratio, 13..42. */
void zb_add(const zb_pair_spec *op, const uint8_t *left, const uint8_t *right, uint8_t *y)
{
    const uint32_t last = op->dims - 1u;
    const int32_t size = op->size[last], step_a = op->left_stride[last], step_b = op->right_stride[last];
    const int32_t half = (int32_t)1 << (op->shift - 13);
    walk w = {{0}, 0, 0};
    do {
        const uint8_t *a = left + w.left, *b = right + w.right;
        for (int32_t i = 0; i < size; i++) {
            const int64_t sum = (int64_t)(number(a[i * step_a], op->left_sign) * 1048576) * op->left_multiplier
                              + (int64_t)(number(b[i * step_b], op->right_sign) * 1048576) * op->right_multiplier;
            *y++ = (uint8_t)clamp(((int32_t)(sum >> 32) + half) >> (op->shift - 12), op->low, op->high);
        }
    } while (next(&w, op->dims, op->size, op->left_stride, op->right_stride));
}

void zb_multiply(const zb_pair_spec *op, const uint8_t *left, const uint8_t *right, uint8_t *y)
{
    const uint32_t last = op->dims - 1u;
    const int32_t size = op->size[last], step_a = op->left_stride[last], step_b = op->right_stride[last];
    walk w = {{0}, 0, 0};
    do {
        const uint8_t *a = left + w.left, *b = right + w.right;
        for (int32_t i = 0; i < size; i++) {
            const int32_t product = number(a[i * step_a], op->left_sign) * number(b[i * step_b], op->right_sign);
            *y++ = (uint8_t)clamp(scale(product, op->left_multiplier, op->shift), op->low, op->high);
        }
    } while (next(&w, op->dims, op->size, op->left_stride, op->right_stride));
}

void zb_copy(const zb_move_spec *op, const uint8_t *x, uint8_t *y)
{
    const uint32_t last = op->dims - 1u;
    const int32_t size = op->size[last], step_a = op->from_stride[last], step_b = op->to_stride[last];
    walk w = {{0}, 0, 0};
    for (uint32_t i = 0; i < op->clear; i++) {
        y[i] = 0;
    }
    do {
        const uint8_t *a = x + op->from + w.left;
        uint8_t *b = y + op->to + w.right;
        for (int32_t i = 0; i < size; i++) {
            b[i * step_b] = a[i * step_a];
        }
    } while (next(&w, op->dims, op->size, op->from_stride, op->to_stride));
}

void zb_move_bytes(uint8_t *to, const uint8_t *from, size_t count)
{
    while (count-- != 0) {
        *to++ = *from++;
    }
}
