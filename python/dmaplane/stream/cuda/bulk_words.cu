// SPDX-License-Identifier: MIT
/*
 * What bulk.cu needs of the bulk copy unit, an instruction a function: as words.cu is to
 * copy.cu, so that a test can run bulk.cu with others below it.
 *
 * A place in shared memory is its 32-bit address. A gate is an mbarrier of one arrival, which
 * opens when as many bytes have come as the load that arrives says.
 */
#if __CUDA_ARCH__ >= 900

/* Where the shared memory of this group begins, of which a launch asks for so much. */
__device__ __forceinline__ u32 shared_room(void)
{
	extern __shared__ __align__(128) u8 room[];

	return (u32)__cvta_generic_to_shared(room);
}

__device__ __forceinline__ void gate_make(u32 gate)
{
	asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" : : "r"(gate) : "memory");
}

__device__ __forceinline__ void gate_wait(u32 gate, u32 parity)
{
	u32 open;

	do {
		asm volatile("{\n\t.reg .pred open;\n\t"
			     "mbarrier.try_wait.parity.shared::cta.b64 open, [%1], %2;\n\t"
			     "selp.u32 %0, 1, 0, open;\n\t}"
			     : "=r"(open)
			     : "r"(gate), "r"(parity)
			     : "memory");
	} while (!open);
}

__device__ __forceinline__ void bulk_load(u32 room, u64 from, u32 bytes, u32 gate)
{
	asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;"
		     :
		     : "r"(gate), "r"(bytes)
		     : "memory");
	if (bytes)
		asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes "
			     "[%0], [%1], %2, [%3];"
			     :
			     : "r"(room), "l"(from), "r"(bytes), "r"(gate)
			     : "memory");
}

__device__ __forceinline__ void bulk_store(u64 to, u32 room, u32 bytes)
{
	if (bytes)
		asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;"
			     :
			     : "l"(to), "r"(room), "r"(bytes)
			     : "memory");
	asm volatile("cp.async.bulk.commit_group;" : : : "memory");
}

/* The gates that were made are seen by the copy unit, too. */
__device__ __forceinline__ void gates_made(void)
{
	asm volatile("fence.mbarrier_init.release.cluster;" : : : "memory");
	asm volatile("fence.proxy.async.shared::cta;" : : : "memory");
}

/* All stores but the last LEFT have read what they store. */
template <int LEFT> __device__ __forceinline__ void stores_have_read(void)
{
	asm volatile("cp.async.bulk.wait_group.read %0;" : : "n"(LEFT) : "memory");
}

/* All stores are in place. */
__device__ __forceinline__ void stores_done(void)
{
	asm volatile("cp.async.bulk.wait_group 0;" : : : "memory");
}

#endif
