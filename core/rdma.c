// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * rdma.c - see rdma.h
 *
 * Bytes behind a header, in order:
 *	SETUP		rkey u32, zero u32, offset u64
 *	ASK		number u32, key_bytes u32, from u64, key 64
 *	GRANT		number u32, result s32, rkey u32, access u32, offset u64, length u64,
 *			covered u64
 *	REVOKE(D)	rkey u32, zero u32
 */
#include "rdma.h"

#define MAGIC		0x52504d44u	/* "DMPR" */
#define SETUP_BYTES	16u
#define ASK_BYTES	(16u + DMP_KEY_BYTES)
#define GRANT_BYTES	40u
#define REVOKE_BYTES	8u

_Static_assert(DMP_RDMA_SLOT_BYTES_MIN >= DMP_RDMA_HEADER_BYTES + DMP_RDMA_MESSAGE_BYTES_MAX,
	       "each message fits the smallest slot");

static void put(__u8 *bytes, __u64 value, unsigned int count)
{
	unsigned int i;

	for (i = 0; i < count; i++)
		bytes[i] = (__u8)(value >> 8 * i);
}

static __u64 get(const __u8 *bytes, unsigned int count)
{
	__u64 value = 0;

	while (count--)
		value = value << 8 | bytes[count];
	return value;
}

void dmp_rdma_put_hello(const struct dmp_rdma_hello *hello, __u8 bytes[DMP_RDMA_HELLO_BYTES])
{
	put(bytes, MAGIC, 4);
	put(bytes + 4, DMP_RDMA_VERSION, 4);
	put(bytes + 8, hello->slots, 4);
	put(bytes + 12, hello->slot_bytes, 4);
	put(bytes + 16, hello->reads, 4);
	put(bytes + 20, 0, 4);
}

int dmp_rdma_get_hello(const __u8 *bytes, __u32 count, struct dmp_rdma_hello *hello)
{
	struct dmp_rdma_hello said;

	if (count < DMP_RDMA_HELLO_BYTES || get(bytes, 4) != MAGIC)
		return -EPROTO;
	if (get(bytes + 4, 4) != DMP_RDMA_VERSION)
		return -EOPNOTSUPP;
	said.slots = (__u32)get(bytes + 8, 4);
	said.slot_bytes = (__u32)get(bytes + 12, 4);
	said.reads = (__u32)get(bytes + 16, 4);
	if (get(bytes + 20, 4) || said.slots < 2 || said.slots > DMP_RDMA_SLOTS_MAX ||
	    said.slot_bytes < DMP_RDMA_SLOT_BYTES_MIN ||
	    said.slot_bytes > DMP_RDMA_SLOT_BYTES_MAX || said.reads > 255)
		return -EPROTO;
	*hello = said;
	return 0;
}

void dmp_rdma_put_header(const struct dmp_rdma_header *header, __u8 bytes[DMP_RDMA_HEADER_BYTES])
{
	bytes[0] = header->kind;
	bytes[1] = header->flags;
	put(bytes + 2, 0, 2);
	put(bytes + 4, header->length, 4);
}

int dmp_rdma_get_header(const __u8 *bytes, __u32 count, struct dmp_rdma_header *header)
{
	if (count < DMP_RDMA_HEADER_BYTES || bytes[0] < DMP_RDMA_STREAM ||
	    bytes[0] > DMP_RDMA_REVOKED || bytes[1] & ~DMP_RDMA_WAKE || get(bytes + 2, 2) ||
	    get(bytes + 4, 4) != count - DMP_RDMA_HEADER_BYTES || count == DMP_RDMA_HEADER_BYTES)
		return -EPROTO;
	header->kind = bytes[0];
	header->flags = bytes[1];
	header->length = count - DMP_RDMA_HEADER_BYTES;
	return 0;
}

static __u32 bytes_of(__u8 kind)
{
	switch (kind) {
	case DMP_RDMA_SETUP:
		return SETUP_BYTES;
	case DMP_RDMA_ASK:
		return ASK_BYTES;
	case DMP_RDMA_GRANT:
		return GRANT_BYTES;
	case DMP_RDMA_REVOKE:
	case DMP_RDMA_REVOKED:
		return REVOKE_BYTES;
	default:
		return 0;
	}
}

__u32 dmp_rdma_put_message(__u8 kind, const struct dmp_rdma_message *message,
			   __u8 bytes[DMP_RDMA_MESSAGE_BYTES_MAX])
{
	__u32 i;

	switch (kind) {
	case DMP_RDMA_ASK:
		put(bytes, message->number, 4);
		put(bytes + 4, message->key_bytes, 4);
		put(bytes + 8, message->from, 8);
		for (i = 0; i < DMP_KEY_BYTES; i++)
			bytes[16 + i] = i < message->key_bytes ? message->key[i] : 0;
		break;
	case DMP_RDMA_GRANT:
		put(bytes, message->number, 4);
		put(bytes + 4, (__u32)message->result, 4);
		put(bytes + 8, message->rkey, 4);
		put(bytes + 12, message->access, 4);
		put(bytes + 16, message->offset, 8);
		put(bytes + 24, message->length, 8);
		put(bytes + 32, message->covered, 8);
		break;
	case DMP_RDMA_SETUP:
		put(bytes, message->rkey, 4);
		put(bytes + 4, 0, 4);
		put(bytes + 8, message->offset, 8);
		break;
	case DMP_RDMA_REVOKE:
	case DMP_RDMA_REVOKED:
		put(bytes, message->rkey, 4);
		put(bytes + 4, 0, 4);
		break;
	default:
		break;
	}
	return bytes_of(kind);
}

static int get_grant(const __u8 *bytes, struct dmp_rdma_message *said)
{
	said->number = (__u32)get(bytes, 4);
	said->result = (__s32)(__u32)get(bytes + 4, 4);
	said->rkey = (__u32)get(bytes + 8, 4);
	said->access = (__u32)get(bytes + 12, 4);
	said->offset = get(bytes + 16, 8);
	said->length = get(bytes + 24, 8);
	said->covered = get(bytes + 32, 8);
	if (said->result > 0 || said->result < -4095 ||
	    said->offset + said->covered < said->offset)
		return -EPROTO;
	return 0;
}

int dmp_rdma_check_grant(const struct dmp_rdma_message *grant, __u64 from)
{
	if (from >= grant->length || grant->covered == 0 ||
	    grant->covered > grant->length - from)
		return -EPROTO;
	return 0;
}

int dmp_rdma_get_message(__u8 kind, const __u8 *bytes, __u32 count,
			 struct dmp_rdma_message *message)
{
	struct dmp_rdma_message said = { 0 };
	__u32 i;

	if (!bytes_of(kind) || count != bytes_of(kind))
		return -EPROTO;
	if (kind == DMP_RDMA_GRANT) {
		if (get_grant(bytes, &said))
			return -EPROTO;
	} else if (kind == DMP_RDMA_ASK) {
		said.number = (__u32)get(bytes, 4);
		said.key_bytes = (__u32)get(bytes + 4, 4);
		said.from = get(bytes + 8, 8);
		if (said.key_bytes == 0 || said.key_bytes > DMP_KEY_BYTES)
			return -EPROTO;
		for (i = 0; i < DMP_KEY_BYTES; i++)
			said.key[i] = bytes[16 + i];
	} else {
		said.rkey = (__u32)get(bytes, 4);
		if (get(bytes + 4, 4))
			return -EPROTO;
		if (kind == DMP_RDMA_SETUP)
			said.offset = get(bytes + 8, 8);
	}
	*message = said;
	return 0;
}

/* A tenth and a fifth of what a revocation waits for: between them nothing changes. */
#define FAST_NS	(DMP_RDMA_LET_GO_MS * 100000ull)
#define SLOW_NS	(2 * FAST_NS)

__u32 dmp_rdma_pace(__u32 bytes, __u64 took_ns)
{
	if (took_ns > SLOW_NS && bytes > DMP_RDMA_PIECE_BYTES)
		return bytes / 2;
	if (took_ns < FAST_NS && bytes < DMP_RDMA_MOVING_BYTES)
		return bytes * 2;
	return bytes;
}

void dmp_rdma_put_word(__u32 emptied, __u8 bytes[DMP_RDMA_WORD_BYTES])
{
	put(bytes, emptied, DMP_RDMA_WORD_BYTES);
}

int dmp_rdma_get_word(__u64 word, __u32 sent, __u32 *repaid)
{
	__u32 emptied = (__u32)word;

	if (word >> 32 || emptied - *repaid > sent - *repaid)
		return -EPROTO;
	*repaid = emptied;
	return 0;
}
