"""An image, opened: joins the network, the disk and the kernel."""
