/* What main.c needs of a machine. */
#ifndef PORT_H
#define PORT_H

#include <stdint.h>

void port_start(void);
void port_put(char letter);
uint64_t port_instructions(void); /* executed so far, under QEMU with -icount shift=0; on a host 0 */
void port_exit(int code);

#endif
