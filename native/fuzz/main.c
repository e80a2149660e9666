/* SPDX-License-Identifier: Apache-2.0 */
/* Without libFuzzer: random mutations of the target's good input. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "fuzz.h"
#include "support.h"

#define MAX_SIZE (64 << 10)

int main(int argc, char **argv)
{
	unsigned long round,
		rounds = argc > 1 ? strtoul(argv[1], NULL, 10) : 1500;
	static uint8_t seed[MAX_SIZE], data[MAX_SIZE];
	size_t seed_size = fuzz_seed(seed, MAX_SIZE), size;
	unsigned times;

	alarm(100); /* an endless loop is a failure */
	for (round = 0; round < rounds; round++) {
		memcpy(data, seed, seed_size);
		size = seed_size;
		if (random_number() % 4 == 0)
			size = random_number() % (seed_size + 1);
		for (times = random_number() % 12; times && size; times--)
			data[random_number() % size] = (uint8_t)random_number();
		LLVMFuzzerTestOneInput(data, size);
	}
	return 0;
}
