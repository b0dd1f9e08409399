// Comes before cpu_features.cpp: the CPU and the kernel that it asks are those of two environment
// variables, FAKE_CPU and FAKE_ERRNO.
#pragma once

#include <sys/syscall.h>
#include <unistd.h>

bool fake_cpu_has(const char* feature);
long fake_syscall(long number, long request, long feature);

#define __builtin_cpu_supports(feature) fake_cpu_has(feature)
#define __builtin_cpu_is(vendor) fake_cpu_has(vendor)
#define syscall(...) fake_syscall(__VA_ARGS__)
