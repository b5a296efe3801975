"""Parameters from and for elsewhere: pretrained files, averages and exports."""
