/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Without libFuzzer: random mutations of the target's good input.
 *
 *   fuzz_TARGET [ROUNDS [SEED]]    that many; other SEEDs make other ones
 *   fuzz_TARGET FILE...            these inputs, as libFuzzer keeps them
 */
#include <ctype.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "fuzz.h"
#include "support.h"

#define MAX_SIZE (64 << 10)
#define ROUNDS 1500

static uint8_t seed[MAX_SIZE], data[MAX_SIZE];

static void run_file(const char *path)
{
	FILE *file = fopen(path, "r");
	size_t size;

	CHECK(file);
	size = fread(data, 1, sizeof(data), file);
	fclose(file);
	LLVMFuzzerTestOneInput(data, size);
}

static void run_random(unsigned long rounds)
{
	size_t seed_size, size;
	unsigned times;

	for (; rounds; rounds--) {
		seed_size = fuzz_seed(seed, MAX_SIZE);
		memcpy(data, seed, seed_size);
		size = seed_size;
		if (random_number() % 4 == 0)
			size = random_number() % (seed_size + 1);
		for (times = random_number() % 12; times && size; times--)
			data[random_number() % size] = (uint8_t)random_number();
		alarm(100); /* an endless loop is a failure */
		LLVMFuzzerTestOneInput(data, size);
	}
}

int main(int argc, char **argv)
{
	int i;

	if (argc > 1 && !isdigit(argv[1][0])) {
		for (i = 1; i < argc; i++)
			run_file(argv[i]);
		return 0;
	}
	random_start(argc > 2 ? strtoul(argv[2], NULL, 10) : 0);
	run_random(argc > 1 ? strtoul(argv[1], NULL, 10) : ROUNDS);
	return 0;
}
