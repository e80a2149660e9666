/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The workloads of the hits bench, without an interpreter's time in them.
 *
 *   hits walk DIR          stat everything below DIR
 *   hits stat DIR LIST     stat each line of LIST, which names a path below DIR
 *   hits open DIR LIST     open, read to the end and close each
 *   hits seq FILE          read FILE from start to end, 128 KiB at a time
 *   hits rand FILE COUNT   COUNT reads of 4 KiB, anywhere in FILE
 *
 * Prints the seconds it took and what it counted.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define BUFFER (128 << 10)

static char buffer[BUFFER];

static unsigned long walk(int parent, const char *name)
{
	unsigned long count = 0;
	struct dirent *entry;
	struct stat status;
	DIR *directory;
	int fd;

	fd = openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW);
	directory = fd < 0 ? NULL : fdopendir(fd);
	if (!directory)
		err(1, "%s", name);
	while ((entry = readdir(directory))) {
		if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, ".."))
			continue;
		if (fstatat(fd, entry->d_name, &status, AT_SYMLINK_NOFOLLOW))
			err(1, "%s", entry->d_name);
		count++;
		if (S_ISDIR(status.st_mode))
			count += walk(fd, entry->d_name);
	}
	closedir(directory);
	return count;
}

static unsigned long read_all(const char *path)
{
	unsigned long size = 0;
	ssize_t got;
	int fd = open(path, O_RDONLY);

	if (fd < 0)
		err(1, "%s", path);
	while ((got = read(fd, buffer, sizeof(buffer))) > 0)
		size += (unsigned long)got;
	if (got < 0)
		err(1, "%s", path);
	close(fd);
	return size;
}

static unsigned long each(const char *list, int is_open)
{
	FILE *file = fopen(list, "r");
	unsigned long count = 0;
	struct stat status;
	char path[4096];

	if (!file)
		err(1, "%s", list);
	while (fgets(path, sizeof(path), file)) {
		path[strcspn(path, "\n")] = 0;
		if (is_open)
			count += read_all(path);
		else if (lstat(path, &status) == 0)
			count++;
		else if (errno != ENOENT)
			err(1, "%s", path);
	}
	fclose(file);
	return count;
}

static unsigned long read_anywhere(const char *path, unsigned long count)
{
	unsigned long done, seed = 1;
	int fd = open(path, O_RDONLY);
	off_t pages;

	if (fd < 0)
		err(1, "%s", path);
	pages = lseek(fd, 0, SEEK_END) / 4096;
	for (done = 0; done < count; done++) {
		seed = seed * 6364136223846793005ul + 1442695040888963407ul;
		if (pread(fd, buffer, 4096, (off_t)(seed >> 20) % pages * 4096) != 4096)
			err(1, "%s", path);
	}
	close(fd);
	return count;
}

int main(int argc, char **argv)
{
	struct timespec from, to;
	unsigned long count = 0;
	char list[4096];
	int stay;

	if (argc < 3)
		errx(2, "got %d arguments", argc - 1);
	if (argc > 3 && !realpath(argv[3], list))
		snprintf(list, sizeof(list), "%s", argv[3]);
	stay = !strcmp(argv[1], "seq") || !strcmp(argv[1], "rand");
	if (!stay && chdir(argv[2]))
		err(1, "%s", argv[2]);
	clock_gettime(CLOCK_MONOTONIC, &from);
	if (!strcmp(argv[1], "walk"))
		count = walk(AT_FDCWD, ".");
	else if (!strcmp(argv[1], "stat"))
		count = each(list, 0);
	else if (!strcmp(argv[1], "open"))
		count = each(list, 1);
	else if (!strcmp(argv[1], "seq"))
		count = read_all(argv[2]);
	else if (!strcmp(argv[1], "rand"))
		count = read_anywhere(argv[2], strtoul(argv[3], NULL, 10));
	else
		errx(2, "got workload %s", argv[1]);
	clock_gettime(CLOCK_MONOTONIC, &to);
	printf("%.6f %lu\n",
	       (double)(to.tv_sec - from.tv_sec) +
		       (double)(to.tv_nsec - from.tv_nsec) / 1e9,
	       count);
	return 0;
}
