// SPDX-License-Identifier: Apache-2.0
// Holds memory, half of it random, and counts: what the snapshots' bench saves.
//   holder MIB
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

int main(int argc, char **argv)
{
    size_t size = (size_t)(argc > 1 ? atoi(argv[1]) : 64) << 20;
    uint64_t *memory = malloc(size), state = 88172645463325252ull;
    if (memory == NULL)
        return 1;
    for (size_t i = 0; i < size / 8; i++) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        memory[i] = i & 256 ? state : i;
    }
    for (unsigned long count = 1;; count++) {
        printf("%lu %lu\n", count, (unsigned long)memory[count % (size / 8)]);
        fflush(stdout);
        nanosleep(&(struct timespec){0, 5000000}, NULL);
    }
}
