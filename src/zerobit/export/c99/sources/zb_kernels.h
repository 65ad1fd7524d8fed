/* Integer kernels in C99: no allocation, no floating point, nothing of libc but stdint.h and stddef.h.
 *
 * Activations take one byte each, signed or unsigned; channels of images lie next to each other (height, width,
 * channel). Weights have 2, 4 or 8 bits, rows of one output channel packed without gaps and starting at a byte, low
 * bits first, 2 and 4 bit ones stored higher by 2 and 8. A result is
 *
 *     floor((sum * multiplier + 2^(shift - 1)) / 2^shift), clamped to low..high.
 */
#ifndef ZB_KERNELS_H
#define ZB_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define ZB_MAX_DIMS 8

/* What init and run return. */
enum {
    ZB_OK = 0,
    ZB_ERROR_ARENA = 1,  /* no arena, or one smaller than the model's ARENA_SIZE */
    ZB_ERROR_STATE = 2,  /* run before init */
    ZB_ERROR_INPUT = 3,  /* an input is missing or has the wrong length */
    ZB_ERROR_OUTPUT = 4  /* an output is missing or has the wrong length */
};

/* A ratio of two scales: multiplier / 2^shift, shift in 1..62. */
typedef struct {
    const int32_t *multiplier;
    const uint8_t *shift;
} zb_ratio;

/* Channels of one convolution that share their inputs; a grouped convolution is several of these. */
typedef struct {
    const uint8_t *weights;   /* rows [channels][kernel_h][kernel_w][depth], sorted by width */
    const int32_t *bias;      /* [channels], in the order of the rows */
    zb_ratio ratio;           /* [channels], likewise */
    const uint16_t *order;    /* [channels] output channel of each row; NULL: first_channel, first_channel + 1, ... */
    uint16_t first_channel;
    uint16_t rows_2, rows_4, rows_8;  /* rows of 2, 4 and 8 bits */
    uint16_t in_h, in_w, in_channels; /* in_channels: distance of two positions of the input */
    uint16_t first_input, depth;      /* input channels that are read */
    uint16_t out_h, out_w, out_channels;
    uint16_t kernel_h, kernel_w, stride_h, stride_w, dilation_h, dilation_w;
    uint16_t pad_top, pad_left;
    uint8_t sign;             /* 128 for signed inputs, else 0 */
    int16_t low, high;
} zb_conv_spec;

/* Channels with one input channel each, depth 1; output channel o reads o / multiple. */
typedef struct {
    zb_conv_spec conv;
    uint16_t multiple;
} zb_depthwise_spec;

/* Sum or product of two tensors that broadcast; strides in bytes, 0 where an operand repeats. */
typedef struct {
    int32_t size[ZB_MAX_DIMS];
    int32_t left_stride[ZB_MAX_DIMS], right_stride[ZB_MAX_DIMS];
    int32_t left_multiplier, right_multiplier; /* of a product: the left one only */
    uint8_t dims, shift;
    uint8_t left_sign, right_sign; /* 128 for a signed operand, else 0 */
    int16_t low, high;
} zb_pair_spec;

/* Windows: largest value or mean. ratio has one entry, or one for each number of values in a window. */
typedef struct {
    uint16_t in_h, in_w, channels, out_h, out_w;
    uint16_t kernel_h, kernel_w, stride_h, stride_w, pad_top, pad_left;
    zb_ratio ratio;
    uint8_t sign;            /* 128 for signed values, else 0 */
    uint8_t ratio_by_count;
    int16_t low, high;
} zb_pool_spec;

/* Integers on one scale to another. */
typedef struct {
    uint32_t length;
    int32_t multiplier;
    uint8_t shift, sign;
    int16_t low, high;
} zb_rescale_spec;

/* Tables of 256 bytes; value i takes table (i / inner) % tables. */
typedef struct {
    const uint8_t *table;
    uint32_t length, inner;
    uint16_t tables;
} zb_lookup_spec;

/* Copies of bytes between places that lie apart: what only moves values. */
typedef struct {
    int32_t size[ZB_MAX_DIMS];
    int32_t from_stride[ZB_MAX_DIMS], to_stride[ZB_MAX_DIMS];
    uint32_t from, to; /* first byte */
    uint32_t clear;    /* bytes of the output that are set to zero before */
    uint8_t dims;
} zb_move_spec;

/* x, y: input and output; scratch: `4 * kernel_h * kernel_w * depth` bytes (depthwise: one row), where rows of less than
 * 8 bits are unpacked. _i32: sums times their ratio, not clamped. */
void zb_convolve(const zb_conv_spec *op, const uint8_t *x, uint8_t *y, int8_t *scratch);
void zb_convolve_i32(const zb_conv_spec *op, const uint8_t *x, int32_t *y, int8_t *scratch);
void zb_convolve_depthwise(const zb_depthwise_spec *op, const uint8_t *x, uint8_t *y, int8_t *scratch);
void zb_convolve_depthwise_i32(const zb_depthwise_spec *op, const uint8_t *x, int32_t *y, int8_t *scratch);
void zb_add(const zb_pair_spec *op, const uint8_t *left, const uint8_t *right, uint8_t *y);
void zb_multiply(const zb_pair_spec *op, const uint8_t *left, const uint8_t *right, uint8_t *y);
void zb_max_pool(const zb_pool_spec *op, const uint8_t *x, uint8_t *y);
void zb_mean_pool(const zb_pool_spec *op, const uint8_t *x, uint8_t *y);
void zb_requantize(const zb_rescale_spec *op, const uint8_t *x, uint8_t *y);
void zb_look_up(const zb_lookup_spec *op, const uint8_t *x, uint8_t *y);
void zb_copy(const zb_move_spec *op, const uint8_t *x, uint8_t *y);
void zb_move_bytes(uint8_t *to, const uint8_t *from, size_t count);

#ifdef __cplusplus
}
#endif

#endif
