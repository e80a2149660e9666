/* SPDX-License-Identifier: Apache-2.0 */
/* Several threads, misses answered by another one, a stop in the middle. */
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

#include "support.h"

#define READS 4000
#define AT_ONCE 40

static struct fake fake;
static struct fake_reply reply;
static atomic_bool is_over;

static void *answer_all(void *unused)
{
	static const uint8_t zeros[BIG_SIZE];
	struct lfs_event events[16];
	size_t i, count;

	(void)unused;
	while (!atomic_load(&is_over)) {
		count = lfs_server_take(fake.server, events, 16);
		/* The last first */
		for (i = count; i-- > 0;) {
			if (events[i].kind != LFS_EVENT_MISS)
				continue;
			if (i % 3 == 0)
				lfs_server_answer_error(fake.server,
							events[i].id, EIO);
			else
				lfs_server_answer_bytes(fake.server,
							events[i].id, zeros,
							events[i].size);
		}
	}
	return NULL;
}

int main(void)
{
	struct lfs_options options = {.threads = 4,
				      .max_waiting = 64,
				      .max_touches = 2,
				      .max_read = LFS_MAX_READ,
				      .share_device = true};
	static bool seen[2 * READS + 2];
	struct lfs_statistics statistics;
	unsigned sent = 0, received = 0;
	struct lfs_touch touches[4];
	pthread_t thread;

	fake_open(&fake, &options);
	CHECK(pthread_create(&thread, NULL, answer_all, NULL) == 0);
	while (received < READS) {
		while (sent < READS && sent - received < AT_ONCE) {
			__atomic_store_n(
				&fake.made.states[0][random_number() % 3],
				random_number() % 2 ? 2 : 0, __ATOMIC_RELEASE);
			fake_send_read(&fake,
				       random_number() % 4 ? fake.made.big
							   : fake.made.file,
				       random_number() % 9000,
				       1 + random_number() % 5000);
			sent++;
		}
		fake_receive(&fake, &reply);
		CHECK(!seen[reply.unique]);
		seen[reply.unique] = true;
		received++;
	}
	CHECK(fake_is_silent(&fake));
	atomic_store(&is_over, true);
	pthread_join(thread, NULL);
	lfs_server_statistics(fake.server, &statistics);
	CHECK(statistics.reads == READS && !statistics.waiting);
	CHECK(statistics.misses > 100 && statistics.threads == 4);
	CHECK(lfs_server_touches(fake.server, 0, touches, 4) == 2);
	/* Stops with requests that wait and threads that sleep */
	memset(fake.made.states[0], 0, 3);
	fake_send_read(&fake, fake.made.big, 0, 10);
	lfs_server_stop(fake.server);
	lfs_server_stop(fake.server);
	CHECK(lfs_server_is_gone(fake.server));
	fake_close(&fake);
	return 0;
}
