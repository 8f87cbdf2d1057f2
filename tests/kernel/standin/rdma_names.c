// SPDX-License-Identifier: MIT
/*
 * rdma_names.c - stands in for RDMA drivers: devices of class "infiniband", and no more
 *
 * Two devices behind the first PCI function there is, so that a plane that lists RDMA
 * devices has some to list where there is no hardware. Of the RDMA core it has the class
 * and one exported symbol, by which others keep the core loaded. It cannot be loaded
 * beside the real one.
 */
#include <linux/device.h>
#include <linux/module.h>
#include <linux/pci.h>
#include <linux/workqueue.h>

static struct class names_class = { .name = "infiniband" };
static struct pci_dev *parent;
static struct device *devices[2];

struct workqueue_struct *ib_wq;
EXPORT_SYMBOL_GPL(ib_wq);

static void remove_devices(void)
{
	int i;

	for (i = 0; i < ARRAY_SIZE(devices); i++)
		if (!IS_ERR_OR_NULL(devices[i]))
			device_unregister(devices[i]);
	class_unregister(&names_class);
	pci_dev_put(parent);
}

static int __init names_init(void)
{
	int i, error;

	parent = pci_get_device(PCI_ANY_ID, PCI_ANY_ID, NULL);
	if (!parent)
		return -ENODEV;
	error = class_register(&names_class);
	if (error) {
		pci_dev_put(parent);
		return error;
	}
	/* The later name first: rows are in the order of names. */
	for (i = 0; i < ARRAY_SIZE(devices); i++) {
		devices[i] = device_create(&names_class, &parent->dev, MKDEV(0, 0), NULL,
					   "standin_%d", 1 - i);
		if (IS_ERR(devices[i])) {
			remove_devices();
			return PTR_ERR(devices[i]);
		}
	}
	return 0;
}

static void __exit names_exit(void)
{
	remove_devices();
}

module_init(names_init);
module_exit(names_exit);

MODULE_DESCRIPTION("stands in for RDMA drivers in tests of dmaplane");
MODULE_LICENSE("Dual MIT/GPL");
