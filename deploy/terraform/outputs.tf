output "cluster_name" {
  description = "For `aws eks update-kubeconfig --name`."
  value       = aws_eks_cluster.this.name
}

output "server_role_arn" {
  description = "The role that application roles must trust."
  value       = aws_iam_role.server.arn
}

output "example_bucket" {
  description = "The bucket that the example pod may list."
  value       = aws_s3_bucket.example.bucket
}

output "example_role" {
  description = "The example pod's annotation."
  value       = trimprefix(module.bucket_reader.arn, "arn:${local.partition}:iam::${local.account}:role/")
}

output "example_permitted" {
  description = "The example namespace's annotation: every role under the path."
  value       = "arn:${local.partition}:iam::${local.account}:role${var.app_role_path}.*"
}

output "startup_taint" {
  description = "What DNS and cert-manager must tolerate: KIAM_STARTUP_TAINT of deploy/helmfile.d."
  value       = var.startup_taint
}

# terraform output -raw helm_values >kiam-values.yaml
output "helm_values" {
  description = "Values of the chart that fit what was made here."
  value = yamlencode({
    clusterName = var.name
    clusterArn  = aws_eks_cluster.this.arn
    agent = {
      # amazon-vpc-cni; the negation catches its pod interfaces and those of security groups for pods.
      host = {
        interface = "!eth0"
      }
    }
    server = {
      region        = var.region
      roleBaseArn   = "arn:${local.partition}:iam::${local.account}:role/"
      assumeRoleArn = aws_iam_role.server.arn
      sessionTags   = var.session_tags
      startupTaint  = var.startup_taint
      # In the node's network, on nodes whose role may become the server's.
      useHostNetwork = true
      deployment = {
        replicas = var.server_nodes
      }
      nodeSelector = {
        "kiam.io/servers" = "true"
      }
      tolerations = [{
        key      = "kiam.io/servers"
        operator = "Exists"
      }]
    }
  })
}
