/* SPDX-License-Identifier: GPL-2.0 */
/*
 * debugfs.h - what an administrator can look at: /sys/kernel/debug/dmaplane
 *
 * Without debugfs, or if a file cannot be made, the module does without: nobody depends
 * on it. dmp_debugfs_exit() waits until no reader is inside.
 */
#ifndef DMP_KERNEL_DEBUGFS_H
#define DMP_KERNEL_DEBUGFS_H

void dmp_debugfs_init(void);
void dmp_debugfs_exit(void);

#endif /* DMP_KERNEL_DEBUGFS_H */
