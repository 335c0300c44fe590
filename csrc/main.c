/*
 * The static program: several small roles in one file, chosen by argv[0]. The master runs it from
 * a descriptor that it opened at its start, so it works in any root directory.
 */
#define _GNU_SOURCE
#include <string.h>
#include <unistd.h>

#include "helper.h"

static const struct {
	const char *name;
	void (*run)(struct task *task);
} roles[] = {
	{ "lowsuper-child", child_run },
	{ "lowsuper-nsinit", nsinit_run },
	{ "lowsuper-shim", shim_run },
	{ "lowsuper-guard", guard_run },
	{ "lowsuper-logger", logger_run },
};

int main(int argc, char **argv)
{
	struct task task;

	/* What the master asks for is then only whether this process got as far as here. */
	if (argc > 0 && !strcmp(argv[0], "lowsuper-probe"))
		return 0;
	for (size_t i = 0; argc > 1 && i < sizeof roles / sizeof *roles; i++) {
		if (strcmp(argv[0], roles[i].name))
			continue;
		task_read(&task, number_of(argv[1]));
		child_enter(&task);
		roles[i].run(&task);
	}
	return 2; /* not started by lowsuper */
}
