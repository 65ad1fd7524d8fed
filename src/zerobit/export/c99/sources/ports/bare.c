/* What the compiler makes calls of out of loops and copies, where there is no libc. */
#include <stddef.h>
#include <stdint.h>

void *memcpy(void *restrict to, const void *restrict from, size_t count);
void *memset(void *to, int value, size_t count);

void *memcpy(void *restrict to, const void *restrict from, size_t count)
{
    uint8_t *a = to;
    const uint8_t *b = from;
    while (count-- != 0) {
        *a++ = *b++;
    }
    return to;
}

void *memset(void *to, int value, size_t count)
{
    uint8_t *a = to;
    while (count-- != 0) {
        *a++ = (uint8_t)value;
    }
    return to;
}
