// A CUDA driver that is none: device memory is host memory, and kernels do not run.
//
// What it is for is order. Work that is queued on a stream is done when somebody waits for that stream, or for its
// context, and not a moment earlier: the slowest device that CUDA's rules allow. So a program that forgets to wait, or
// waits for the wrong stream, sees old bytes each time, and not once in a month. Memory that was freed is overwritten
// and never handed out again.
//
// Per-thread default streams (handle 2) are one stream for each thread, as on a device. There are two devices.
// Functions called fakecuda_* are for tests. All others of the driver's interface answer CUDA_ERROR_NOT_SUPPORTED.

#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef unsigned long long Address;
enum { OK = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, INVALID_DEVICE = 101, INVALID_CONTEXT = 201 };
enum { DEVICES = 2, FREED = 0xDD };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static __thread uintptr_t current;   // this thread's context
static __thread uintptr_t own_stream; // what handle 2 means here
static uintptr_t next_handle = 0x1000;

// --- what happened, for tests ---------------------------------------------------------------------------------------

static char *trace;
static size_t trace_len;

static void note(const char *format, ...) {
    char line[256];
    va_list arguments;
    va_start(arguments, format);
    int len = vsnprintf(line, sizeof line - 1, format, arguments);
    va_end(arguments);
    if (len > (int)sizeof line - 2) len = sizeof line - 2;
    line[len++] = '\n';
    trace = realloc(trace, trace_len + len + 1);
    memcpy(trace + trace_len, line, len);
    trace_len += len;
    trace[trace_len] = 0;
}

// --- memory ---------------------------------------------------------------------------------------------------------

static struct memory {
    Address start;
    size_t bytes;
    uintptr_t context;
    int pooled, freed;
    struct memory *next;
} *memories;

static struct memory *memory_at(Address address) {
    for (struct memory *one = memories; one; one = one->next)
        if (!one->freed && one->start <= address && address < one->start + one->bytes) return one;
    return NULL;
}

static int allocate(Address *address, size_t bytes, int pooled) {
    if (!current) return INVALID_CONTEXT;
    if (!bytes) return INVALID_VALUE;
    if (bytes >> 40) return OUT_OF_MEMORY;
    struct memory *one = calloc(1, sizeof *one);
    *one = (struct memory){.bytes = bytes, .context = current, .pooled = pooled, .next = memories};
    one->start = (Address)(uintptr_t)aligned_alloc(512, (bytes + 1023) / 512 * 512);
    memset((void *)(uintptr_t)one->start, 0xAA, bytes);
    memories = one;
    *address = one->start;
    return OK;
}

static void release(Address address) {
    struct memory *one = memory_at(address);
    if (!one) return;
    memset((void *)(uintptr_t)one->start, FREED, one->bytes);
    one->freed = 1;
}

// --- streams --------------------------------------------------------------------------------------------------------

enum kind { COPY, SET, WAIT, FREE };

static struct work {
    enum kind kind;
    uintptr_t context, stream;
    unsigned long long number;
    Address to, from;
    void *staged; // what a copy from the host copies: CUDA takes it over before the call returns
    size_t bytes;
    int value;
    uintptr_t awaited; // WAIT: the stream, up to the piece of work `from`
    struct work *next;
} *queue;
static unsigned long long numbers;

static uintptr_t stream_of(void *handle) {
    if ((uintptr_t)handle != 2) return (uintptr_t)handle + (handle ? 0 : current);
    if (!own_stream) own_stream = next_handle++;
    return own_stream;
}

static void run(uintptr_t context, uintptr_t stream, unsigned long long until);

static void perform(struct work *work) {
    void *to = (void *)(uintptr_t)work->to;
    switch (work->kind) {
    case COPY: memmove(to, work->staged ? work->staged : (void *)(uintptr_t)work->from, work->bytes); break;
    case SET: memset(to, work->value, work->bytes); break;
    case WAIT: run(0, work->awaited, work->from); break;
    case FREE: release(work->to); break;
    }
    free(work->staged);
    free(work);
}

// Does what is queued in a context, or on a stream, up to some piece of work.
static void run(uintptr_t context, uintptr_t stream, unsigned long long until) {
    for (;;) {
        struct work **at = &queue;
        while (*at && !((*at)->number <= until && (context ? (*at)->context == context : (*at)->stream == stream)))
            at = &(*at)->next;
        struct work *work = *at;
        if (!work) return;
        *at = work->next;
        perform(work);
    }
}

static int enqueue(void *stream, struct work work) {
    if (!current) return INVALID_CONTEXT;
    struct work *one = malloc(sizeof *one), **end = &queue;
    *one = work;
    one->context = current;
    one->stream = stream_of(stream);
    one->number = ++numbers;
    one->next = NULL;
    while (*end) end = &(*end)->next;
    *end = one;
    return OK;
}

static int is_idle(uintptr_t stream) {
    for (struct work *work = queue; work; work = work->next)
        if (work->stream == stream) return 0;
    return 1;
}

static void *copied(const void *from, size_t bytes) {
    void *copy = malloc(bytes ? bytes : 1);
    return memcpy(copy, from, bytes);
}

#define LOCKED(body)                     \
    do {                                 \
        pthread_mutex_lock(&lock);       \
        int result = OK;                 \
        body;                            \
        pthread_mutex_unlock(&lock);     \
        return result;                   \
    } while (0)
#define ALL (~0ULL)

// --- devices and contexts -------------------------------------------------------------------------------------------

int cuInit(unsigned flags) { return OK; }
int cuDriverGetVersion(int *version) { return *version = 13000, OK; }
int cuDeviceGetCount(int *count) { return *count = DEVICES, OK; }
int cuDeviceGet(int *device, int ordinal) { return ordinal < 0 || ordinal >= DEVICES ? INVALID_DEVICE : (*device = ordinal, OK); }
int cuDeviceGetName(char *name, int len, int device) { return snprintf(name, len, "fake CUDA device %d, in host memory", device), OK; }
int cuDeviceTotalMem_v2(size_t *bytes, int device) { return *bytes = 1ULL << 34, OK; }
int cuDevicePrimaryCtxRetain(uintptr_t *context, int device) { return *context = 0xC0 + device, OK; }
int cuDevicePrimaryCtxRelease_v2(int device) { return OK; }
int cuCtxGetCurrent(uintptr_t *context) { return *context = current, OK; }
int cuCtxSetCurrent(uintptr_t context) { return current = context, OK; }
int cuCtxGetDevice(int *device) { return current ? (*device = current - 0xC0, OK) : INVALID_CONTEXT; }
int cuCtxSynchronize(void) {
    if (!current) return INVALID_CONTEXT;
    LOCKED(note("synchronize context %d", (int)current - 0xC0); run(current, 0, ALL));
}

int cuDeviceGetAttribute(int *value, int attribute, int device) {
    switch (attribute) {
    case 75: *value = 9; break;  // compute capability, major
    case 76: *value = 0; break;  // and minor
    case 117: *value = 1; break; // writes of others are flushed by the host
    case 118: *value = 0; break; // since nothing orders them
    default: *value = 1;
    }
    return OK;
}

int cuGetErrorName(int error, const char **text) { return *text = "CUDA_ERROR_OF_THE_FAKE", OK; }
int cuGetErrorString(int error, const char **text) { return *text = "an error of the fake CUDA driver", OK; }

// --- streams and events ---------------------------------------------------------------------------------------------

int cuStreamCreate(uintptr_t *stream, unsigned flags) { LOCKED(*stream = next_handle++); }
int cuStreamDestroy_v2(void *stream) { LOCKED(run(0, stream_of(stream), ALL)); }
int cuStreamSynchronize(void *stream) { LOCKED(note("synchronize stream"); run(0, stream_of(stream), ALL)); }
int cuStreamIsCapturing(void *stream, int *status) { return *status = 0, OK; }
int cuStreamQuery(void *stream) { return OK; }

struct event { uintptr_t stream; unsigned long long number; };
int cuEventCreate(struct event **event, unsigned flags) { return *event = calloc(1, sizeof **event), OK; }
int cuEventDestroy_v2(struct event *event) { return free(event), OK; }
int cuEventRecord(struct event *event, void *stream) { LOCKED(*event = ((struct event){stream_of(stream), numbers})); }
int cuEventSynchronize(struct event *event) { LOCKED(run(0, event->stream, event->number)); }
int cuEventQuery(struct event *event) { return OK; }
int cuStreamWaitEvent(void *stream, struct event *event, unsigned flags) {
    LOCKED(result = enqueue(stream, (struct work){.kind = WAIT, .awaited = event->stream, .from = event->number}));
}

// --- memory, as the driver has it -----------------------------------------------------------------------------------

int cuMemAllocAsync(Address *address, size_t bytes, void *stream) { LOCKED(note("allocate from the pool"); result = allocate(address, bytes, 1)); }
int cuMemAlloc_v2(Address *address, size_t bytes) { LOCKED(note("allocate"); result = allocate(address, bytes, 0)); }
int cuMemFreeAsync(Address address, void *stream) {
    // A stream that has nothing to do frees at once. That is as early as can be, and harms those who rely on it.
    LOCKED(note("free in order"); if (is_idle(stream_of(stream))) release(address);
           else result = enqueue(stream, (struct work){.kind = FREE, .to = address}));
}
int cuMemFree_v2(Address address) { LOCKED(note("free"); run(current, 0, ALL); release(address)); }
int cuMemGetInfo_v2(size_t *available, size_t *total) { return *available = *total = 1ULL << 34, OK; }
int cuMemsetD8Async(Address to, unsigned char value, size_t bytes, void *stream) {
    LOCKED(result = enqueue(stream, (struct work){.kind = SET, .to = to, .value = value, .bytes = bytes}));
}
int cuMemcpyHtoDAsync_v2(Address to, const void *from, size_t bytes, void *stream) {
    LOCKED(result = enqueue(stream, (struct work){.kind = COPY, .to = to, .staged = copied(from, bytes), .bytes = bytes}));
}
int cuMemcpyDtoDAsync_v2(Address to, Address from, size_t bytes, void *stream) {
    LOCKED(result = enqueue(stream, (struct work){.kind = COPY, .to = to, .from = from, .bytes = bytes}));
}
int cuMemcpyDtoHAsync_v2(void *to, Address from, size_t bytes, void *stream) {
    // Into memory that is not pinned the call itself waits for its stream.
    LOCKED(run(0, stream_of(stream), ALL); memcpy(to, (void *)(uintptr_t)from, bytes));
}

int cuPointerGetAttribute(void *value, int attribute, Address address) {
    LOCKED(
        struct memory *one = memory_at(address);
        if (!current) result = INVALID_CONTEXT;
        else if (!one) result = INVALID_VALUE;
        else switch (attribute) {
            case 2: *(unsigned *)value = 2; break;                       // memory of a device
            case 8: *(char *)value = 0; break;                           // managed
            case 9: *(int *)value = one->context - 0xC0; break;          // device
            case 10: *(char *)value = !one->pooled; break;               // legacy handles
            case 11: *(Address *)value = one->start; break;
            case 12: *(size_t *)value = one->bytes; break;
            case 17: *(void **)value = one->pooled ? (void *)0x900 : NULL; break; // its pool
            default: result = INVALID_VALUE;
        });
}

// What another device wrote over PCIe is seen once it was flushed.
static const uintptr_t bus = 0xB0;
int cuFlushGPUDirectRDMAWrites(int target, int scope) { LOCKED(note("flush remote writes"); run(0, bus + current, ALL)); }

// --- for tests ------------------------------------------------------------------------------------------------------

// Adds a line to the trace.
void fakecuda_note(const char *line) {
    pthread_mutex_lock(&lock);
    note("%s", line);
    pthread_mutex_unlock(&lock);
}

// Copies the trace, and begins a new one. Returns its length; a buffer that is too small gets a part of it.
size_t fakecuda_take_trace(char *buffer, size_t room) {
    pthread_mutex_lock(&lock);
    size_t len = trace_len < room ? trace_len : room;
    if (len) memcpy(buffer, trace, len);
    trace_len = 0;
    pthread_mutex_unlock(&lock);
    return len;
}

// The device whose context this thread has, or -1.
int fakecuda_bound(void) { return current ? (int)current - 0xC0 : -1; }

// How much is queued that changes memory of a device.
int fakecuda_queued(int device) {
    int queued = 0;
    pthread_mutex_lock(&lock);
    for (struct work *work = queue; work; work = work->next)
        queued += (work->kind == COPY || work->kind == SET) && memory_at(work->to) && memory_at(work->to)->context == 0xC0u + device;
    pthread_mutex_unlock(&lock);
    return queued;
}

// An engine's bytes on their way into a device's memory: in a copy queued in the memory's context, or over the bus.
int fakecuda_arrive(Address to, const void *from, size_t bytes, int over_the_bus) {
    LOCKED(
        struct memory *one = memory_at(to);
        if (!one) result = INVALID_VALUE;
        else {
            uintptr_t was = current;
            current = one->context;
            void *stream = (void *)(over_the_bus ? bus + current : (uintptr_t)0xE0);
            result = enqueue(stream, (struct work){.kind = COPY, .to = to, .staged = copied(from, bytes), .bytes = bytes});
            current = was;
            if (over_the_bus) // No context waits for it.
                for (struct work *work = queue; work; work = work->next)
                    if (work->stream == (uintptr_t)stream) work->context = 0;
        });
}
