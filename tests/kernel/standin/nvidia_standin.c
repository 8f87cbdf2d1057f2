// SPDX-License-Identifier: MIT
/*
 * nvidia_standin.c - stands in for NVIDIA's driver, of which it has three functions
 *
 * It is no driver of a GPU. It binds to QEMU's ivshmem device under the name "nvidia" and
 * calls the device's shared memory (BAR 2) the memory of a GPU: GPU address STANDIN_BASE is
 * its start, but each two neighbouring 64 KiB pages are swapped, so that what is contiguous
 * for the GPU is in pieces in the BAR.
 *
 * It behaves as NVIDIA's published module (version 550 and later) does where others can
 * tell: one lock, held while a callback runs and taken by get_pages and put_pages; a table
 * is out of the list before its callback is called, and freed, here overwritten first, when
 * that has returned; put_pages of a table that is not in the list is no error;
 * free_page_table does nothing; names are exported GPL-only. It was written from those
 * facts, separately from the header that dmaplane uses.
 *
 * debugfs nvidia_standin/free: write a GPU address: the 64 KiB there are gone (cudaFree).
 * debugfs nvidia_standin/state: what has been called how often.
 */
#include <linux/debugfs.h>
#include <linux/list.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/pci.h>
#include <linux/seq_file.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#define STANDIN_BASE	0x700000000000ULL
#define STANDIN_PAGE	65536ULL
#define STANDIN_BAR	2
#define POISON		0x5a

/* What NVIDIA's header declares, by the names there. */
struct nvidia_p2p_page {
	u64 physical_address;
	struct {
		u32 wreqmb_h;
		u32 rreqmb_h;
		u32 rreqmb_0;
		u32 reserved[3];
	} fermi;
};

struct nvidia_p2p_page_table {
	u32 version;
	u32 page_size;
	struct nvidia_p2p_page **pages;
	u32 entries;
	u8 *gpu_uuid;
};

int nvidia_p2p_get_pages(u64 p2p_token, u32 va_space, u64 virtual_address,
			 u64 length, struct nvidia_p2p_page_table **page_table,
			 void (*free_callback)(void *data), void *data);
int nvidia_p2p_put_pages(u64 p2p_token, u32 va_space, u64 virtual_address,
			 struct nvidia_p2p_page_table *page_table);
int nvidia_p2p_free_page_table(struct nvidia_p2p_page_table *page_table);

static uint version = 0x00010002;
module_param(version, uint, 0644);
MODULE_PARM_DESC(version, "of the page tables given out");

struct standin_table {
	struct nvidia_p2p_page_table table;
	struct list_head tables;
	u64 address;
	u64 length;
	void (*callback)(void *data);
	void *data;
	struct nvidia_p2p_page *page_array;
};

static DEFINE_MUTEX(standin_lock);
/* protected by standin_lock */
static LIST_HEAD(standin_tables);
static struct pci_dev *standin_device;
static unsigned int callbacks, puts, late_puts, frees_of_table;

static struct dentry *standin_folder;

static void standin_free_table(struct standin_table *this)
{
	u32 entries = this->table.entries;

	/* Who reads it now reads rubbish. */
	memset(this->page_array, POISON, entries * sizeof(*this->page_array));
	memset(this->table.pages, POISON, entries * sizeof(*this->table.pages));
	kvfree(this->page_array);
	kvfree(this->table.pages);
	memset(this, POISON, sizeof(*this));
	kfree(this);
}

static struct standin_table *standin_make_table(u64 address, u64 length)
{
	u32 entries = length / STANDIN_PAGE;
	phys_addr_t start = pci_resource_start(standin_device, STANDIN_BAR);
	u64 first = (address - STANDIN_BASE) / STANDIN_PAGE;
	struct standin_table *this;
	u32 i;

	this = kzalloc(sizeof(*this), GFP_KERNEL);
	if (!this)
		return NULL;
	this->page_array = kvcalloc(entries, sizeof(*this->page_array), GFP_KERNEL);
	this->table.pages = kvcalloc(entries, sizeof(*this->table.pages), GFP_KERNEL);
	if (!this->page_array || !this->table.pages) {
		kvfree(this->page_array);
		kvfree(this->table.pages);
		kfree(this);
		return NULL;
	}
	for (i = 0; i < entries; i++) {
		this->page_array[i].physical_address = start + ((first + i) ^ 1) * STANDIN_PAGE;
		this->table.pages[i] = &this->page_array[i];
	}
	this->table.version = version;
	this->table.page_size = 1;	/* NVIDIA_P2P_PAGE_SIZE_64KB */
	this->table.entries = entries;
	this->address = address;
	this->length = length;
	return this;
}

int nvidia_p2p_get_pages(u64 p2p_token, u32 va_space, u64 virtual_address,
			 u64 length, struct nvidia_p2p_page_table **page_table,
			 void (*free_callback)(void *data), void *data)
{
	u64 offset = virtual_address - STANDIN_BASE;
	struct standin_table *this;
	u64 size;
	int error = -EINVAL;

	if (p2p_token || va_space || !free_callback || !data || length == 0 ||
	    virtual_address % STANDIN_PAGE || length % STANDIN_PAGE)
		return -EINVAL;
	mutex_lock(&standin_lock);
	if (!standin_device)
		goto out_unlock;
	size = pci_resource_len(standin_device, STANDIN_BAR);
	if (virtual_address < STANDIN_BASE || offset >= size || length > size - offset)
		goto out_unlock;
	error = -ENOMEM;
	this = standin_make_table(virtual_address, length);
	if (!this)
		goto out_unlock;
	this->callback = free_callback;
	this->data = data;
	list_add_tail(&this->tables, &standin_tables);
	*page_table = &this->table;
	error = 0;
out_unlock:
	mutex_unlock(&standin_lock);
	return error;
}
EXPORT_SYMBOL_GPL(nvidia_p2p_get_pages);

int nvidia_p2p_put_pages(u64 p2p_token, u32 va_space, u64 virtual_address,
			 struct nvidia_p2p_page_table *page_table)
{
	struct standin_table *this, *found = NULL;

	mutex_lock(&standin_lock);
	list_for_each_entry(this, &standin_tables, tables)
		if (&this->table == page_table && this->address == virtual_address)
			found = this;
	if (found) {
		list_del(&found->tables);
		standin_free_table(found);
		puts++;
	} else {
		late_puts++;
	}
	mutex_unlock(&standin_lock);
	return 0;
}
EXPORT_SYMBOL_GPL(nvidia_p2p_put_pages);

int nvidia_p2p_free_page_table(struct nvidia_p2p_page_table *page_table)
{
	/* Inside a callback, so with standin_lock held by the caller's caller. */
	frees_of_table++;
	return 0;
}
EXPORT_SYMBOL_GPL(nvidia_p2p_free_page_table);

/* All that is pinned of [@address, @end) goes away. */
static void standin_free_range(u64 address, u64 end)
{
	struct standin_table *this, *next;

	mutex_lock(&standin_lock);
	list_for_each_entry_safe(this, next, &standin_tables, tables) {
		if (this->address >= end || this->address + this->length <= address)
			continue;
		list_del(&this->tables);
		this->callback(this->data);
		callbacks++;
		standin_free_table(this);
	}
	mutex_unlock(&standin_lock);
}

static ssize_t free_write(struct file *file, const char __user *text, size_t length, loff_t *at)
{
	u64 address;
	int error = kstrtoull_from_user(text, length, 0, &address);

	if (error)
		return error;
	address = round_down(address, STANDIN_PAGE);
	standin_free_range(address, address + STANDIN_PAGE);
	return length;
}

static const struct file_operations free_operations = {
	.owner = THIS_MODULE,
	.open = simple_open,
	.write = free_write,
};

static int state_show(struct seq_file *file, void *unused)
{
	struct standin_table *this;
	unsigned int tables = 0;

	mutex_lock(&standin_lock);
	list_for_each_entry(this, &standin_tables, tables)
		tables++;
	seq_printf(file, "tables=%u callbacks=%u puts=%u late_puts=%u frees_of_table=%u\n",
		   tables, callbacks, puts, late_puts, frees_of_table);
	mutex_unlock(&standin_lock);
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(state);

static int standin_probe(struct pci_dev *device, const struct pci_device_id *id)
{
	int error = pci_enable_device_mem(device);

	if (error)
		return error;
	mutex_lock(&standin_lock);
	if (standin_device)
		error = -EBUSY;
	else
		standin_device = device;
	mutex_unlock(&standin_lock);
	if (error)
		pci_disable_device(device);
	return error;
}

/* The GPU goes, and with it all its memory. */
static void standin_remove(struct pci_dev *device)
{
	standin_free_range(0, U64_MAX);
	mutex_lock(&standin_lock);
	standin_device = NULL;
	mutex_unlock(&standin_lock);
	pci_disable_device(device);
}

static const struct pci_device_id standin_ids[] = { { PCI_DEVICE(0x1af4, 0x1110) }, { } };

static struct pci_driver standin_driver = {
	.name = "nvidia",
	.id_table = standin_ids,
	.probe = standin_probe,
	.remove = standin_remove,
};

static int __init standin_init(void)
{
	int error = pci_register_driver(&standin_driver);

	if (error)
		return error;
	standin_folder = debugfs_create_dir("nvidia_standin", NULL);
	debugfs_create_file("free", 0200, standin_folder, NULL, &free_operations);
	debugfs_create_file("state", 0400, standin_folder, NULL, &state_fops);
	return 0;
}

static void __exit standin_exit(void)
{
	debugfs_remove(standin_folder);
	pci_unregister_driver(&standin_driver);
}

module_init(standin_init);
module_exit(standin_exit);

MODULE_DESCRIPTION("stands in for NVIDIA's driver in dmaplane's tests");
MODULE_AUTHOR("the dmaplane authors");
MODULE_LICENSE("Dual MIT/GPL");
