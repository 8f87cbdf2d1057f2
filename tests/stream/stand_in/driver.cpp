// SPDX-License-Identifier: MIT
/*
 * A stand-in for the NVIDIA driver: the calls dmaplane.stream.cuda makes, on this processor.
 *
 * It shows that arguments, order and lifetimes of what the package asks the driver for are
 * right, nothing about a GPU. It is as late and as unordered as a driver may be: work waits in
 * its stream until somebody waits, and then the next stream that may run is drawn by lot. So
 * a missing event shows as wrong bytes. It is as strict, too: a copy engine's ranges lie
 * in one allocation and one registration, or it answers CUDA_ERROR_INVALID_VALUE.
 *
 * STAND_IN_VERSION is the driver's version, STAND_IN_SEED draws the lots, STAND_IN_FAIL=n
 * answers the n-th copy with STAND_IN_CODE, and the n-th kernel of STAND_IN_HANG=n never ends.
 * A call in which a driver would then wait for ever ends the process. One lock guards everything.
 */
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <random>
#include <set>
#include <vector>

#include "kernels.h"
#include "lanes.h"

enum { OK = 0, INVALID = 1, NO_DEVICE = 100, BAD_HANDLE = 400, NOT_FOUND = 500, NOT_READY = 600,
       REGISTERED = 712 };

struct Event {
	bool timed = true;
	u64 recorded = 0, completed = 0;
	double time = 0;
};

struct Work {
	std::function<bool()> ready;
	std::function<void()> run;
};

struct Stream {
	std::deque<Work> work;
	bool destroyed = false;
};

static std::recursive_mutex lock;
static std::set<Stream *> streams;
static std::map<u64, u64> device_memory, pinned_memory;
static std::map<u64, int> files;
static std::mt19937 lots(getenv("STAND_IN_SEED") ? atoi(getenv("STAND_IN_SEED")) : 1);
static thread_local std::vector<void *> contexts;
static double clock_ms;
static long copies_seen, kernels_seen;
static bool hung;
static int dead;

#define EXPORT extern "C" __attribute__((visibility("default")))
#define ENTER                                                                                  \
	std::lock_guard<std::recursive_mutex> held(lock);                                      \
	if (dead)                                                                              \
		return dead;                                                                   \
	if (contexts.empty())                                                                  \
		return 201 /* no context is current */

static bool step()
{
	std::vector<Stream *> able;

	for (Stream *stream : streams)
		if (!stream->work.empty() && stream->work.front().ready())
			able.push_back(stream);
	if (able.empty())
		return false;
	Stream *chosen = able[lots() % able.size()];
	Work work = std::move(chosen->work.front());
	chosen->work.pop_front();
	work.run();
	clock_ms += 0.001;
	if (chosen->destroyed && chosen->work.empty()) {
		streams.erase(chosen);
		delete chosen;
	}
	return true;
}

static void until(std::function<bool()> done)
{
	while (!done())
		if (!step())
			abort(); /* a driver would hang: somebody waits for what nobody recorded */
}

static void settle()
{
	while (step())
		;
	if (hung)
		abort(); /* a driver waits for all that runs before it frees anything */
}

static void put(void *stream, std::function<void()> run)
{
	((Stream *)stream)->work.push_back({ [] { return true; }, std::move(run) });
}

static bool inside(const std::map<u64, u64> &memory, u64 at, u64 length)
{
	auto found = memory.upper_bound(at);

	if (found == memory.begin())
		return false;
	--found;
	return at + length <= found->first + found->second;
}

static int copy_work(u64 to, u64 from, u64 length, std::function<void()> &work)
{
	const char *fail = getenv("STAND_IN_FAIL"), *code = getenv("STAND_IN_CODE");
	const bool up = inside(device_memory, to, length) && inside(pinned_memory, from, length);
	const bool down = inside(pinned_memory, to, length) && inside(device_memory, from, length);

	if (fail && ++copies_seen == atol(fail)) {
		const int answer = code ? atoi(code) : INVALID;

		if (answer >= 700)
			dead = answer;
		return answer;
	}
	if (!length || (!up && !down))
		return INVALID;
	work = [=] { memcpy((void *)to, (const void *)from, length); };
	return OK;
}

EXPORT int cuInit(unsigned)
{
	return getenv("STAND_IN_DEVICES") && !atoi(getenv("STAND_IN_DEVICES")) ? NO_DEVICE : OK;
}

static int driver_version(void)
{
	const char *given = getenv("STAND_IN_VERSION");

	return given ? atoi(given) : 13000;
}

EXPORT int cuDriverGetVersion(int *version)
{
	*version = driver_version();
	return OK;
}

EXPORT int cuDeviceGetCount(int *count)
{
	*count = 1;
	return OK;
}

EXPORT int cuDeviceGet(int *device, int ordinal)
{
	*device = ordinal;
	return ordinal ? 101 : OK;
}

EXPORT int cuDeviceGetAttribute(int *value, int attribute, int)
{
	switch (attribute) {
	case 75: /* compute capability 9.0 */
		*value = 9;
		return OK;
	case 16: /* processors */
		*value = 132;
		return OK;
	case 76:
		*value = 0;
		return OK;
	default:
		*value = 1;
		return OK;
	}
}

EXPORT int cuDeviceGetPCIBusId(char *text, int length, int)
{
	strncpy(text, "00000000:01:00.0", length);
	return OK;
}

EXPORT int cuDeviceGetName(char *text, int length, int)
{
	strncpy(text, "stand-in", length);
	return OK;
}

EXPORT int cuDeviceGetUuid_v2(u8 *uuid, int)
{
	memset(uuid, 0x5a, 16);
	return OK;
}

EXPORT int cuDevicePrimaryCtxRetain(void **context, int)
{
	*context = &dead;
	return OK;
}

EXPORT int cuDevicePrimaryCtxRelease_v2(int)
{
	std::lock_guard<std::recursive_mutex> held(lock);

	if (hung)
		abort();
	/* What is left now was leaked. */
	return device_memory.empty() && pinned_memory.empty() && streams.empty() ? OK : INVALID;
}

EXPORT int cuCtxPushCurrent_v2(void *context)
{
	contexts.push_back(context);
	return OK;
}

EXPORT int cuCtxPopCurrent_v2(void **context)
{
	if (contexts.empty())
		return 201;
	*context = contexts.back();
	contexts.pop_back();
	return OK;
}

EXPORT int cuCtxGetStreamPriorityRange(int *least, int *greatest)
{
	ENTER;
	*least = 0;
	*greatest = -5;
	return OK;
}

EXPORT int cuStreamCreateWithPriority(void **stream, unsigned flags, int priority)
{
	ENTER;
	if (flags != 1 || priority > 0 || priority < -5)
		return INVALID;
	*stream = new Stream;
	streams.insert((Stream *)*stream);
	return OK;
}

EXPORT int cuStreamDestroy_v2(void *stream)
{
	ENTER;
	((Stream *)stream)->destroyed = true;
	if (((Stream *)stream)->work.empty()) {
		streams.erase((Stream *)stream);
		delete (Stream *)stream;
	}
	return OK;
}

EXPORT int cuStreamSynchronize(void *stream)
{
	ENTER;
	until([=] { return ((Stream *)stream)->work.empty(); });
	return OK;
}

EXPORT int cuStreamQuery(void *stream)
{
	ENTER;
	if (!((Stream *)stream)->work.empty())
		step();
	return ((Stream *)stream)->work.empty() ? OK : NOT_READY;
}

EXPORT int cuStreamWaitEvent(void *stream, void *event, unsigned)
{
	ENTER;
	Event *other = (Event *)event;
	const u64 number = other->recorded;

	((Stream *)stream)
		->work.push_back({ [=] { return other->completed >= number; }, [] {} });
	return OK;
}

EXPORT int cuEventCreate(void **event, unsigned flags)
{
	ENTER;
	if (flags & ~2u)
		return INVALID;
	*event = new Event;
	((Event *)*event)->timed = !(flags & 2);
	return OK;
}

EXPORT int cuEventDestroy_v2(void *event)
{
	ENTER;
	settle();
	delete (Event *)event;
	return OK;
}

EXPORT int cuEventRecord(void *event, void *stream)
{
	ENTER;
	Event *ours = (Event *)event;
	const u64 number = ++ours->recorded;

	put(stream, [=] {
		ours->completed = number > ours->completed ? number : ours->completed;
		ours->time = clock_ms;
	});
	return OK;
}

EXPORT int cuEventQuery(void *event)
{
	ENTER;
	Event *ours = (Event *)event;

	if (ours->completed < ours->recorded)
		step();
	return ours->completed < ours->recorded ? NOT_READY : OK;
}

EXPORT int cuEventSynchronize(void *event)
{
	ENTER;
	until([=] { return ((Event *)event)->completed >= ((Event *)event)->recorded; });
	return OK;
}

EXPORT int cuEventElapsedTime_v2(float *ms, void *first, void *last)
{
	ENTER;
	if (!((Event *)first)->timed || !((Event *)last)->timed)
		return BAD_HANDLE;
	*ms = (float)(((Event *)last)->time - ((Event *)first)->time);
	return OK;
}

/* Device memory is a memfd, so that its dma-buf can be one, too. */
EXPORT int cuMemAlloc_v2(u64 *address, size_t length)
{
	ENTER;
	const int file = memfd_create("device", MFD_CLOEXEC);

	if (file < 0 || ftruncate(file, (length + 4095) / 4096 * 4096))
		abort();
	void *made = mmap(0, length, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);

	files[(u64)made] = file;
	memset(made, 0xee, length);
	*address = (u64)made;
	device_memory[(u64)made] = length;
	return OK;
}

EXPORT int cuMemFree_v2(u64 address)
{
	ENTER;
	settle();
	auto found = device_memory.find(address);

	if (found == device_memory.end())
		return INVALID;
	munmap((void *)address, found->second);
	close(files[address]);
	device_memory.erase(found);
	return OK;
}

EXPORT int cuMemGetHandleForAddressRange(int *handle, u64 address, size_t length, int type, u64)
{
	ENTER;
	if (type != 1 || length % 4096 || !device_memory.count(address))
		return INVALID;
	/* As drivers before 610 do: it is exported, and cannot be mapped. */
	*handle = driver_version() >= 13030 ? dup(files[address]) : open("/dev/null", O_RDWR);
	return OK;
}

EXPORT int cuMemcpyDtoH_v2(void *to, u64 from, size_t length)
{
	ENTER;
	settle();
	if (!inside(device_memory, from, length))
		return INVALID;
	memcpy(to, (void *)from, length);
	return OK;
}

EXPORT int cuMemHostAlloc(void **address, size_t length, unsigned flags)
{
	ENTER;
	if (flags != 3)
		return INVALID;
	*address = aligned_alloc(4096, (length + 4095) / 4096 * 4096);
	pinned_memory[(u64)*address] = length;
	return OK;
}

EXPORT int cuMemFreeHost(void *address)
{
	ENTER;
	settle();
	if (!pinned_memory.erase((u64)address))
		return INVALID;
	free(address);
	return OK;
}

EXPORT int cuMemHostRegister_v2(void *address, size_t length, unsigned flags)
{
	ENTER;
	const u64 at = (u64)address;

	if (at % 4096 || length % 4096 || !length || flags != 3)
		return INVALID;
	for (auto &one : pinned_memory)
		if (one.first < at + length && at < one.first + one.second)
			return REGISTERED;
	pinned_memory[at] = length;
	return OK;
}

EXPORT int cuMemHostUnregister(void *address)
{
	ENTER;
	settle();
	return pinned_memory.erase((u64)address) ? OK : INVALID;
}

EXPORT int cuPointerGetAttribute(void *data, int attribute, u64 address)
{
	ENTER;
	const bool host = inside(pinned_memory, address, 1);

	if (!host && !inside(device_memory, address, 1))
		return INVALID;
	if (attribute == 2)
		*(unsigned *)data = host ? 1 : 2;
	else if (attribute == 3)
		*(u64 *)data = address;
	else
		return INVALID;
	return OK;
}

EXPORT int cuMemGetAddressRange_v2(u64 *base, size_t *length, u64 address)
{
	ENTER;
	auto found = device_memory.upper_bound(address);

	if (!inside(device_memory, address, 1))
		return INVALID;
	--found;
	*base = found->first;
	*length = found->second;
	return OK;
}

EXPORT int cuModuleLoadData(void **module, const void *image)
{
	ENTER;
	if (memcmp(image, "\177ELF", 4))
		return 200;
	*module = &lots;
	return OK;
}

EXPORT int cuFuncSetAttribute(void *, int attribute, int value)
{
	ENTER;
	return attribute == 8 && value <= 228 << 10 ? OK : INVALID;
}

EXPORT int cuModuleUnload(void *)
{
	ENTER;
	return OK;
}

EXPORT int cuModuleGetFunction(void **function, void *, const char *name)
{
	ENTER;
	*function = (void *)find_kernel(name);
	return *function ? OK : NOT_FOUND;
}

EXPORT int cuLaunchKernel(void *function, unsigned groups, unsigned, unsigned, unsigned threads,
			  unsigned, unsigned, unsigned, void *stream, void **parameters, void **extra)
{
	ENTER;
	const Kernel *kernel = (const Kernel *)function;

	if (!groups || !threads || threads > 512 || threads % 32 || extra || !stream)
		return INVALID;
	/* A driver has read the parameters when it returns. */
	std::vector<u8> arguments((u8 *)parameters[0], (u8 *)parameters[0] + kernel->bytes);

	if (getenv("STAND_IN_HANG") && ++kernels_seen == atol(getenv("STAND_IN_HANG"))) {
		hung = true;
		((Stream *)stream)->work.push_back({ [] { return false; }, [] {} });
		return OK;
	}
	put(stream, [=] { run_kernel(kernel->run, arguments.data(), groups, threads); });
	return OK;
}

EXPORT int cuMemcpyHtoDAsync_v2(u64 to, const void *from, size_t length, void *stream)
{
	ENTER;
	std::function<void()> work;
	const int answer = copy_work(to, (u64)from, length, work);

	if (!answer)
		put(stream, work);
	return answer;
}

EXPORT int cuMemcpyDtoHAsync_v2(void *to, u64 from, size_t length, void *stream)
{
	ENTER;
	std::function<void()> work;
	const int answer = copy_work((u64)to, from, length, work);

	if (!answer)
		put(stream, work);
	return answer;
}

static int batch(u64 *to, u64 *from, size_t *lengths, size_t count, int *attributes,
		 size_t *first, size_t kinds, size_t *failed, void *stream)
{
	ENTER;
	std::vector<std::function<void()>> works(count);

	if (!count || kinds != 1 || first[0] || attributes[0] < 1 || attributes[0] > 3 || !stream ||
	    !streams.count((Stream *)stream))
		return INVALID;
	for (size_t i = 0; i < count; i++) {
		const int answer = copy_work(to[i], from[i], lengths[i], works[i]);

		if (answer) {
			if (failed)
				*failed = i;
			return answer;
		}
	}
	std::shuffle(works.begin(), works.end(), lots);
	put(stream, [works] {
		for (auto &work : works)
			work();
	});
	return OK;
}

static int batch_of_nine(u64 *to, u64 *from, size_t *lengths, size_t count, int *attributes,
			 size_t *first, size_t kinds, size_t *failed, void *stream)
{
	return batch(to, from, lengths, count, attributes, first, kinds, failed, stream);
}

static int batch_of_eight(u64 *to, u64 *from, size_t *lengths, size_t count, int *attributes,
			  size_t *first, size_t kinds, void *stream)
{
	return batch(to, from, lengths, count, attributes, first, kinds, 0, stream);
}

EXPORT int cuGetProcAddress_v2(const char *name, void **found, int version, u64, int *status)
{
	int ours;
	char newer[128];

	cuDriverGetVersion(&ours);
	if (!strcmp(name, "cuMemcpyBatchAsync")) {
		*found = version > ours || version < 12080 ? 0 :
			 version >= 13000		   ? (void *)batch_of_eight :
							     (void *)batch_of_nine;
	} else {
		Dl_info here;

		dladdr((void *)&dead, &here);
		void *self = dlopen(here.dli_fname, RTLD_NOW | RTLD_NOLOAD);

		snprintf(newer, sizeof(newer), "%s_v2", name);
		*found = dlsym(self, newer);
		if (!*found)
			*found = dlsym(self, name);
	}
	if (status)
		*status = *found ? 0 : 1;
	return *found ? OK : NOT_FOUND;
}
