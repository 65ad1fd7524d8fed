/* Cortex-M under QEMU: start-up, output by semihosting, instructions by SysTick.
 *
 * With -icount shift=0 an instruction takes 1 ns, so that a tick of SysTick is PORT_TICK_PS / 1000 instructions. */
#include "port.h"

#include <stddef.h>

#ifndef PORT_TICK_PS
#define PORT_TICK_PS 40000u /* 25 MHz */
#endif

#define SYST_CSR (*(volatile uint32_t *)0xE000E010u)
#define SYST_RVR (*(volatile uint32_t *)0xE000E014u)
#define SYST_CVR (*(volatile uint32_t *)0xE000E018u)
#define CPACR (*(volatile uint32_t *)0xE000ED88u)
#define SYST_TOP 0xFFFFFFu

extern uint32_t port_stack_top[], port_data_from[], port_data[], port_data_end[], port_bss[], port_bss_end[];
int main(void);

static volatile uint32_t wraps;

static int semihost(int operation, const void *argument)
{
    register int r0 __asm__("r0") = operation;
    register const void *r1 __asm__("r1") = argument;
    __asm__ volatile("bkpt 0xAB" : "+r"(r0) : "r"(r1) : "memory");
    return r0;
}

void port_start(void)
{
    SYST_RVR = SYST_TOP;
    SYST_CVR = 0;
    SYST_CSR = 7;
    while (SYST_CVR == 0) { /* the first tick loads it */
    }
}

void port_put(char letter)
{
    semihost(3, &letter); /* SYS_WRITEC */
}

uint64_t port_instructions(void)
{
    uint32_t before, left;
    do {
        before = wraps;
        left = SYST_CVR;
    } while (before != wraps);
    return ((uint64_t)before * (SYST_TOP + 1u) + (SYST_TOP - left)) * PORT_TICK_PS / 1000u;
}

void port_exit(int code)
{
    const uint32_t block[2] = {0x20026u, (uint32_t)code}; /* ADP_Stopped_ApplicationExit */
    semihost(0x20, block);                                 /* SYS_EXIT_EXTENDED */
    for (;;) {
    }
}

static void on_tick(void)
{
    wraps = wraps + 1;
}

static void on_fault(void)
{
    port_exit(254);
}

void port_reset(void)
{
#if defined(__ARM_FP) || defined(__ARM_FEATURE_MVE)
    CPACR |= 0xFu << 20;
    __asm__ volatile("dsb\nisb");
#endif
    const uint32_t *from = port_data_from;
    for (uint32_t *to = port_data; to < port_data_end; to++) {
        *to = *from++;
    }
    for (uint32_t *to = port_bss; to < port_bss_end; to++) {
        *to = 0;
    }
    main();
    for (;;) {
    }
}

typedef void (*handler)(void);

__attribute__((section(".vectors"), used)) static const struct {
    void *stack;
    handler handlers[15];
} vectors = {
    port_stack_top,
    {port_reset, on_fault, on_fault, on_fault, on_fault, on_fault, on_fault, NULL, NULL, NULL, on_fault, on_fault,
     NULL, on_fault, on_tick},
};
