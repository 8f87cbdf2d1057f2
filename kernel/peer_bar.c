// SPDX-License-Identifier: GPL-2.0
/*
 * peer_bar.c - a range of a PCI memory BAR, of any device
 *
 * Who may: whoever has CAP_SYS_RAWIO, and for devices that the administrator lists in the
 * module parameter peer_allow everybody who may open a plane. A BAR can be the registers of
 * a device that does DMA, so listing one gives away what its registers can do: name the BAR
 * that holds data. A locked-down kernel refuses both.
 *
 * Range and caching are ours while the buffer lives, the device is not: the driver that is
 * bound to it goes on as it likes. It may be unbound, and another bound, without the buffer
 * noticing; a driver that resets the device or turns off its memory makes reads give ones.
 */
#include <linux/capability.h>
#include <linux/io.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/pci.h>
#include <linux/pm_runtime.h>
#include <linux/security.h>
#include <linux/slab.h>
#include <linux/string.h>

#include "peer.h"

#define DMP_PEER_ALLOW_MAX	32U	/* entries of peer_allow */
#define DMP_PEER_ANY_BAR	(-1)

struct dmp_peer_allow {
	u16 vendor;
	u16 device;
	int bar;		/* DMP_PEER_ANY_BAR: all of them */
};

struct dmp_bar_peer {
	struct dmp_peer peer;
	bool enabled;		/* set by take; cleared with dmp_peers_lock held */
};

static DEFINE_MUTEX(dmp_peer_allow_lock);
/* protected by dmp_peer_allow_lock */
static struct dmp_peer_allow dmp_peer_allowed[DMP_PEER_ALLOW_MAX];
static unsigned int dmp_peer_allow_count;

/* "10de:2330" or "1af4:1110:2", hexadecimal, with nothing before or after. */
static int dmp_peer_allow_parse(char *text, struct dmp_peer_allow *entry)
{
	char *vendor = strsep(&text, ":");
	char *device = strsep(&text, ":");
	u8 bar;

	if (!device || kstrtou16(vendor, 16, &entry->vendor) ||
	    kstrtou16(device, 16, &entry->device))
		return -EINVAL;
	entry->bar = DMP_PEER_ANY_BAR;
	if (!text)
		return 0;
	if (kstrtou8(text, 16, &bar) || bar >= PCI_STD_NUM_BARS)
		return -EINVAL;
	entry->bar = bar;
	return 0;
}

/* The whole list or nothing of it. */
static int dmp_peer_allow_set(const char *value, const struct kernel_param *parameter)
{
	struct dmp_peer_allow *list;
	char *copy, *rest, *word;
	unsigned int count = 0;
	int error = -ENOMEM;

	list = kcalloc(DMP_PEER_ALLOW_MAX, sizeof(*list), GFP_KERNEL);
	copy = kstrdup(value, GFP_KERNEL);
	if (!list || !copy)
		goto out_free;
	error = 0;
	rest = strim(copy);
	while (rest && *rest && !error) {
		word = strsep(&rest, ",");
		if (count == DMP_PEER_ALLOW_MAX)
			error = -ENOSPC;
		else
			error = dmp_peer_allow_parse(word, &list[count++]);
	}
	if (error)
		goto out_free;
	mutex_lock(&dmp_peer_allow_lock);
	memcpy(dmp_peer_allowed, list, count * sizeof(*list));
	dmp_peer_allow_count = count;
	mutex_unlock(&dmp_peer_allow_lock);
out_free:
	kfree(copy);
	kfree(list);
	return error;
}

static int dmp_peer_allow_get(char *page, const struct kernel_param *parameter)
{
	unsigned int i;
	int length = 0;

	mutex_lock(&dmp_peer_allow_lock);
	for (i = 0; i < dmp_peer_allow_count; i++) {
		const struct dmp_peer_allow *entry = &dmp_peer_allowed[i];

		length += sysfs_emit_at(page, length, "%s%04x:%04x", i ? "," : "", entry->vendor,
					entry->device);
		if (entry->bar != DMP_PEER_ANY_BAR)
			length += sysfs_emit_at(page, length, ":%x", entry->bar);
	}
	mutex_unlock(&dmp_peer_allow_lock);
	length += sysfs_emit_at(page, length, "\n");
	return length;
}

static const struct kernel_param_ops dmp_peer_allow_operations = {
	.set = dmp_peer_allow_set,
	.get = dmp_peer_allow_get,
};

module_param_cb(peer_allow, &dmp_peer_allow_operations, NULL, 0644);
MODULE_PARM_DESC(peer_allow,
		 "PCI devices whose BARs may be used without CAP_SYS_RAWIO: vendor:device[:bar],...");

static bool dmp_peer_bar_listed(const struct pci_dev *device, u32 bar)
{
	bool listed = false;
	unsigned int i;

	mutex_lock(&dmp_peer_allow_lock);
	for (i = 0; i < dmp_peer_allow_count; i++) {
		const struct dmp_peer_allow *entry = &dmp_peer_allowed[i];

		if (entry->vendor == device->vendor && entry->device == device->device &&
		    (entry->bar == DMP_PEER_ANY_BAR || entry->bar == bar))
			listed = true;
	}
	mutex_unlock(&dmp_peer_allow_lock);
	return listed;
}

/*
 * Awake, and with its memory BARs on. Under the device's lock, so that no driver is being
 * bound or unbound: the core counts who enabled a device, but does not wait for the first.
 */
static int dmp_peer_bar_enable(struct pci_dev *device)
{
	int error = pm_runtime_resume_and_get(&device->dev);

	if (error)
		return error;
	device_lock(&device->dev);
	error = pci_enable_device_mem(device);
	device_unlock(&device->dev);
	if (error)
		pm_runtime_put(&device->dev);
	return error;
}

static int dmp_peer_bar_take(struct dmp_peer *peer, u32 bar, u64 address, u64 bytes)
{
	struct dmp_bar_peer *this = container_of(peer, struct dmp_bar_peer, peer);
	struct pci_dev *device = peer->device;
	u64 length;

	if (bar >= PCI_STD_NUM_BARS)
		return -ENODEV;
	if (!dmp_peer_bar_listed(device, bar) && !capable(CAP_SYS_RAWIO))
		return -EPERM;
	if (security_locked_down(LOCKDOWN_PCI_ACCESS))
		return -EPERM;
	length = pci_resource_len(device, bar);
	if (!(pci_resource_flags(device, bar) & IORESOURCE_MEM) || length == 0 ||
	    (pci_resource_flags(device, bar) & IORESOURCE_UNSET))
		return -ENODEV;
	if (!IS_ALIGNED(pci_resource_start(device, bar), PAGE_SIZE) ||
	    address >= length || bytes > length - address)
		return -EINVAL;
	peer->runs = kvzalloc(sizeof(*peer->runs), GFP_KERNEL_ACCOUNT);
	if (!peer->runs)
		return -ENOMEM;
	peer->runs->start = pci_resource_start(device, bar) + address;
	peer->runs->bytes = bytes;
	peer->run_count = 1;
	if (dmp_peer_bar_enable(device))
		return -ENODEV;
	WRITE_ONCE(this->enabled, true);
	return 0;
}

/*
 * Not under the device's lock: free may be called by whoever drops the last reference, and
 * that may be the device's own driver while it is unbound.
 */
static void dmp_peer_bar_let_go(struct dmp_peer *peer)
{
	struct dmp_bar_peer *this = container_of(peer, struct dmp_bar_peer, peer);

	if (!READ_ONCE(this->enabled))
		return;
	WRITE_ONCE(this->enabled, false);
	pci_disable_device(peer->device);
	pm_runtime_put(&peer->device->dev);
}

const struct dmp_peer_provider dmp_peer_bar = {
	.peer_bytes = sizeof(struct dmp_bar_peer),
	.take = dmp_peer_bar_take,
	.let_go = dmp_peer_bar_let_go,
};
