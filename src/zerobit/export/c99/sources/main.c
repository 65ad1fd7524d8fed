/* Runs the model on the samples in vectors.h and compares with what they should give: an example of its use, and a
 * check of a compiler or a board. With ZB_TRACE every tensor is compared. The exit code is the number of differences,
 * 255 at most. */
#include "model.h"
#include "ports/port.h"
#include "vectors.h"

static uint8_t arena[Example_ARENA_SIZE];

static void put(const char *text)
{
    while (*text != '\0') {
        port_put(*text++);
    }
}

static void put_number(uint64_t value)
{
    char digits[21];
    int at = 20;
    digits[20] = '\0';
    do {
        digits[--at] = (char)('0' + value % 10);
        value /= 10;
    } while (value != 0);
    put(digits + at);
}

static void put_field(const char *name, uint64_t value)
{
    put(" ");
    put(name);
    put("=");
    put_number(value);
}

static unsigned differences;
static unsigned sample;
static uint64_t instructions, since;

/* Hash of values of 1 or 4 bytes, low bytes first on every machine (FNV-1a). */
static uint32_t hash_of(const void *data, uint32_t length, unsigned width)
{
    const uint8_t *bytes = data;
    const int32_t *words = data;
    uint32_t hash = 2166136261u;
    for (uint32_t i = 0; i < length; i++) {
        uint32_t value = width == 4 ? (uint32_t)words[i] : bytes[i];
        for (unsigned b = 0; b < width; b++, value >>= 8) {
            hash = (hash ^ (value & 255u)) * 16777619u;
        }
    }
    return hash;
}

static void compare(const char *kind, unsigned index, uint32_t hash, uint32_t wanted)
{
    if (hash != wanted) {
        differences++;
        put("DIFFERENT");
        put_field("sample", sample);
        put_field(kind, index);
        put("\n");
    }
}

#ifdef ZB_TRACE
void zb_trace(uint32_t tensor, const uint8_t *data, uint32_t size)
{
    const uint64_t spent = port_instructions() - since;
    instructions += spent;
    compare("tensor", tensor, hash_of(data, size, 1), tensor_hashes[sample][tensor]);
    put("tensor=");
    put_number(tensor);
    put_field("instructions", spent);
    put("\n");
    since = port_instructions();
}
#endif

int main(void)
{
    port_start();
    if (Example_INIT(arena, sizeof arena) != ZB_OK) {
        put("init failed\n");
        port_exit(255);
    }
    for (sample = 0; sample < SAMPLES; sample++) {
        instructions = 0;
        since = port_instructions();
        const int code = Example_RUN(sample);
        instructions += port_instructions() - since;
        if (code != ZB_OK) {
            put("run failed");
            put_field("code", (uint64_t)code);
            put("\n");
            port_exit(255);
        }
        for (unsigned i = 0; i < OUTPUTS; i++) {
            const uint32_t hash = hash_of(output_data[i], output_lengths[i], output_widths[i]);
            compare("output", i, hash, output_hashes[sample][i]);
        }
        put("sample=");
        put_number(sample);
        put_field("instructions", instructions);
        put("\n");
    }
    put("samples=");
    put_number(SAMPLES);
    put_field("arena", sizeof arena);
    put_field("differences", differences);
    put("\n");
    port_exit(differences > 255 ? 255 : (int)differences);
    return 0;
}
