// SPDX-License-Identifier: MIT
/*
 * rdma_names.c - stands in for RDMA drivers of PCI functions: devices of their class, no more
 *
 * Two devices behind the first PCI function there is, so that a plane that lists RDMA
 * devices has some to list where there is no hardware. The class is the RDMA core's own, of
 * the device that the parameter names; to the core itself they are not known.
 */
#include <linux/device.h>
#include <linux/module.h>
#include <linux/pci.h>
#include <linux/slab.h>
#include <net/net_namespace.h>
#include <rdma/ib_verbs.h>

static char *like = "rxe0";
module_param(like, charp, 0444);
MODULE_PARM_DESC(like, "an RDMA device, of whose class these are");

static struct ib_device *model;
static struct pci_dev *parent;
static struct ib_core_device *devices[2];

static void release(struct device *device)
{
	kfree(container_of(device, struct ib_core_device, dev));
}

static void remove_devices(void)
{
	int i;

	for (i = 0; i < ARRAY_SIZE(devices); i++)
		if (devices[i])
			device_unregister(&devices[i]->dev);
	pci_dev_put(parent);
	ib_device_put(model);
}

static int add_device(int number, struct ib_core_device **added)
{
	struct ib_core_device *device = kzalloc(sizeof(*device), GFP_KERNEL);
	int error;

	if (!device)
		return -ENOMEM;
	device_initialize(&device->dev);
	device->dev.class = model->dev.class;
	device->dev.parent = &parent->dev;
	device->dev.release = release;
	write_pnet(&device->rdma_net, &init_net);
	error = dev_set_name(&device->dev, "standin_%d", number);
	if (!error)
		error = device_add(&device->dev);
	if (error)
		put_device(&device->dev);
	else
		*added = device;
	return error;
}

static int __init names_init(void)
{
	int i, error = 0;

	model = ib_device_get_by_name(like, RDMA_DRIVER_UNKNOWN);
	if (!model)
		return -ENODEV;
	parent = pci_get_device(PCI_ANY_ID, PCI_ANY_ID, NULL);
	if (!parent)
		error = -ENODEV;
	/* The later name first: rows are in the order of names. */
	for (i = 0; i < ARRAY_SIZE(devices) && !error; i++)
		error = add_device(1 - i, &devices[i]);
	if (error)
		remove_devices();
	return error;
}

static void __exit names_exit(void)
{
	remove_devices();
}

module_init(names_init);
module_exit(names_exit);

MODULE_DESCRIPTION("stands in for RDMA drivers in tests of dmaplane");
MODULE_LICENSE("Dual MIT/GPL");
