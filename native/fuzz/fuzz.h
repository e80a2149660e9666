/* SPDX-License-Identifier: Apache-2.0 */
/* What each fuzz target gives: libFuzzer's entry, and a good input. */
#ifndef LAZYFS_FUZZ_H
#define LAZYFS_FUZZ_H

#include <stddef.h>
#include <stdint.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* fuzz_seed() writes a good input of at most 'max' bytes and returns its size;
 * main.c mutates it where there is no libFuzzer. */
size_t fuzz_seed(uint8_t *data, size_t max);

#endif /* LAZYFS_FUZZ_H */
