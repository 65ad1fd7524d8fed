/* RISC-V, machine `virt` of QEMU: output by the serial port, exit by the test device, instructions by instret. */
#include "port.h"

void port_start(void) {}

void port_put(char letter)
{
    *(volatile uint8_t *)0x10000000u = (uint8_t)letter;
}

uint64_t port_instructions(void)
{
    uint32_t high, low, again;
    do {
        __asm__ volatile("csrr %0, minstreth\n csrr %1, minstret\n csrr %2, minstreth"
                         : "=r"(high), "=r"(low), "=r"(again));
    } while (high != again);
    return ((uint64_t)high << 32) | low;
}

void port_exit(int code)
{
    *(volatile uint32_t *)0x100000u = code != 0 ? ((uint32_t)code << 16) | 0x3333u : 0x5555u;
    for (;;) {
    }
}

int main(void);
void port_main(void);

void port_main(void)
{
    extern uint32_t port_bss[], port_bss_end[];
    for (uint32_t *to = port_bss; to < port_bss_end; to++) {
        *to = 0;
    }
    main();
    for (;;) {
    }
}

__asm__(".section .text.start\n"
        ".globl port_reset\n"
        "port_reset:\n"
        ".option push\n"
        ".option norelax\n"
        "la gp, __global_pointer$\n"
        ".option pop\n"
        "la sp, port_stack_top\n"
        "j port_main\n");
